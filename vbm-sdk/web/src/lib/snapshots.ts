// Snapshots as the rows of a tree. Pure.

export interface TreeItem {
  id: string;
  parent?: string | null;
  created_at: string;
}

export interface TreeRow<T> {
  item: T;
  /** How many ancestors it has. */
  depth: number;
}

/** Parents before their children, older before newer. One whose parent is gone, or its own ancestor, is a root. */
export function treeRows<T extends TreeItem>(items: T[]): TreeRow<T>[] {
  const byAge = [...items].sort((a, b) => a.created_at.localeCompare(b.created_at));
  const ids = new Set(items.map((item) => item.id));
  const rows: TreeRow<T>[] = [];
  const seen = new Set<string>();
  const visit = (item: T, depth: number) => {
    if (seen.has(item.id)) return;
    seen.add(item.id);
    rows.push({ item, depth });
    for (const child of byAge) if (child.parent === item.id) visit(child, depth + 1);
  };
  for (const item of byAge) if (!item.parent || !ids.has(item.parent)) visit(item, 0);
  for (const item of byAge) visit(item, 0);
  return rows;
}
