import { Content, Pagination, SearchInput, Toolbar, ToolbarContent, ToolbarItem } from "@patternfly/react-core";
import { ActionsColumn, type IAction, Table, Tbody, Td, Th, Thead, Tr } from "@patternfly/react-table";
import { type ReactNode, useState } from "react";

const ROWS_PER_PAGE = 50;

export interface Column<T> {
  title: string;
  cell: (row: T) => ReactNode;
  /** What the column is sorted by; not sortable when absent. */
  by?: (row: T) => string | number;
}

interface Props<T> {
  /** What the table holds, for those who do not see it. */
  label: string;
  rows: T[];
  columns: Column<T>[];
  rowKey: (row: T) => string;
  /** What the filter looks into; no filter when absent. */
  text?: (row: T) => string;
  actions?: (row: T) => IAction[];
  /** Beside the filter. */
  tools?: ReactNode;
  /** In place of the table when there are no rows at all. */
  empty: ReactNode;
}

/** A table with a filter, an order and pages. Rows stay in the order given until a column is chosen. */
export function DataTable<T>(props: Props<T>) {
  const [filter, setFilter] = useState("");
  const [sort, setSort] = useState<{ column: number; descending: boolean }>();
  const [page, setPage] = useState(1);
  if (props.rows.length === 0) return props.empty;

  const wanted = filter.trim().toLowerCase();
  const { text } = props;
  const matching = text && wanted ? props.rows.filter((row) => text(row).toLowerCase().includes(wanted)) : props.rows;
  const sorted = order(matching, sort && props.columns[sort.column]?.by, sort?.descending ?? false);
  const pages = Math.max(1, Math.ceil(sorted.length / ROWS_PER_PAGE));
  const at = Math.min(page, pages);
  const shown = sorted.slice((at - 1) * ROWS_PER_PAGE, at * ROWS_PER_PAGE);

  const sortOf = (index: number) =>
    props.columns[index]?.by && {
      sortBy: sort ? { index: sort.column, direction: sort.descending ? ("desc" as const) : ("asc" as const) } : {},
      onSort: (_: unknown, column: number, direction: "asc" | "desc") =>
        setSort({ column, descending: direction === "desc" }),
      columnIndex: index,
    };

  return (
    <>
      {(text || props.tools || pages > 1) && (
        <Toolbar>
          <ToolbarContent>
            {text && (
              <ToolbarItem>
                <SearchInput
                  aria-label={`Filter ${props.label}`}
                  placeholder="Filter"
                  value={filter}
                  onChange={(_, value) => setFilter(value)}
                  onClear={() => setFilter("")}
                />
              </ToolbarItem>
            )}
            {props.tools && <ToolbarItem align={{ default: "alignEnd" }}>{props.tools}</ToolbarItem>}
            {pages > 1 && (
              <ToolbarItem variant="pagination">
                <Pagination
                  isCompact
                  itemCount={sorted.length}
                  perPage={ROWS_PER_PAGE}
                  page={at}
                  onSetPage={(_, next) => setPage(next)}
                />
              </ToolbarItem>
            )}
          </ToolbarContent>
        </Toolbar>
      )}
      <Table aria-label={props.label} variant="compact">
        <Thead>
          <Tr>
            {props.columns.map((column, index) => {
              const sorting = sortOf(index);
              return (
                <Th key={column.title} modifier="nowrap" {...(sorting ? { sort: sorting } : {})}>
                  {column.title}
                </Th>
              );
            })}
            {props.actions && <Th screenReaderText="Actions" />}
          </Tr>
        </Thead>
        <Tbody>
          {shown.map((row) => (
            <Tr key={props.rowKey(row)} data-row={props.rowKey(row)}>
              {props.columns.map((column) => (
                <Td key={column.title} dataLabel={column.title}>
                  {column.cell(row)}
                </Td>
              ))}
              {props.actions && (
                <Td isActionCell>
                  <ActionsColumn items={props.actions(row)} popperProps={{ position: "right" }} />
                </Td>
              )}
            </Tr>
          ))}
        </Tbody>
      </Table>
      {shown.length === 0 && (
        <Content component="p" className="vbm-nothing">
          Nothing fits the filter "{filter}".
        </Content>
      )}
    </>
  );
}

function order<T>(rows: T[], by: ((row: T) => string | number) | undefined, descending: boolean): T[] {
  if (!by) return rows;
  const compare = (a: T, b: T) => {
    const [left, right] = [by(a), by(b)];
    return typeof left === "number" && typeof right === "number"
      ? left - right
      : String(left).localeCompare(String(right), undefined, { numeric: true });
  };
  return [...rows].sort((a, b) => (descending ? compare(b, a) : compare(a, b)));
}
