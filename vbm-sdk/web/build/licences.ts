// Writes `licences.txt` beside the page: which packages the bundle holds, and their licences in full.
// It is made from the modules that the bundler took, so it is never older than the page.

import { existsSync, readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import type { Plugin } from "vite";

/** Files of a package that hold its licence. */
const LICENCE_FILE = /^(licen[cs]e|copying|notice|authors)/i;
/** What the MPL-2.0 asks for (section 3.2): where the source can be had. */
const SOURCE_NOTE =
  "The source of these files, unchanged, is the npm package of that name and version, and is at its repository.";

interface Package {
  name: string;
  version: string;
  licence: string;
  homepage: string;
  texts: string[];
}

/** The directory of the package that a module belongs to; `undefined` for our own. */
export function packageDir(moduleId: string): string | undefined {
  const path = moduleId.replace(/^\0/, "").split("?")[0] ?? "";
  const at = path.lastIndexOf("/node_modules/");
  if (at < 0) return undefined;
  const rest = path.slice(at + "/node_modules/".length).split("/");
  const name = rest[0]?.startsWith("@") ? rest.slice(0, 2) : rest.slice(0, 1);
  return path.slice(0, at) + "/node_modules/" + name.join("/");
}

function read(dir: string): Package {
  const about = JSON.parse(readFileSync(join(dir, "package.json"), "utf8")) as Record<string, unknown>;
  const repository = about["repository"] as string | { url?: string } | undefined;
  const url = typeof repository === "string" ? repository : repository?.url;
  const folders = [dir, join(dir, "docs")].filter((folder) => existsSync(folder));
  const texts = folders.flatMap((folder) =>
    readdirSync(folder, { withFileTypes: true })
      .filter((entry) => entry.isFile() && LICENCE_FILE.test(entry.name))
      .map((entry) => `--- ${entry.name}\n${readFileSync(join(folder, entry.name), "utf8").trim()}`),
  );
  return {
    name: String(about["name"]),
    version: String(about["version"]),
    licence: String(about["license"] ?? "see below"),
    homepage: String(about["homepage"] ?? url ?? ""),
    texts,
  };
}

function text(packages: Package[]): string {
  const parts = packages.map((item) =>
    [
      "=".repeat(100),
      `${item.name} ${item.version}    ${item.licence}`,
      item.homepage,
      ...(item.licence.includes("MPL") ? [SOURCE_NOTE] : []),
      "",
      ...item.texts,
      "",
    ].join("\n"),
  );
  const list = packages.map((item) => `  ${item.name} ${item.version}: ${item.licence}`).join("\n");
  return `VBM's web page: MIT OR Apache-2.0. It holds these packages:\n\n${list}\n\n${parts.join("\n")}`;
}

export function licences(): Plugin {
  return {
    name: "vbm-licences",
    apply: "build",
    generateBundle() {
      const dirs = new Set([...this.getModuleIds()].map(packageDir).filter((dir) => dir !== undefined));
      const packages = [...dirs]
        .filter((dir) => existsSync(join(dir, "package.json")))
        .map(read)
        .sort((a, b) => a.name.localeCompare(b.name));
      this.emitFile({ type: "asset", fileName: "licences.txt", source: text(packages) });
    },
  };
}
