// Each thing that the page does, as a `vbm` command. Pure.

import type { CreateForward, CreateNetwork, DriverKind, Group, NicRequest, PortLimits, Rule } from "../api/types";
import type { Verb } from "../lib/power";
import { rateText } from "../lib/limits";
import { ruleText } from "../lib/rules";
import { line, option } from "./quote";

const MIB_PER_GIB = 1024;
/** What `vbm launch` takes when nobody says otherwise. */
const DEFAULT_VCPUS = 1;
const DEFAULT_MEMORY_MIB = 256;
const DEFAULT_CMDLINE = "console=ttyS0";

/** What the form of a VM holds. */
export interface Launch {
  image: string;
  name: string;
  vcpus: number;
  memoryMib: number;
  diskMib: number | null;
  nics: NicRequest[];
  driver: DriverKind | null;
  node: string | null;
  stopped: boolean;
  labels: Record<string, string>;
}

/** A size as `vbm` reads it: `512M`, `2G`. */
export function size(mib: number): string {
  return mib % MIB_PER_GIB === 0 && mib > 0 ? `${mib / MIB_PER_GIB}G` : `${mib}M`;
}

/** A NIC in one word: `lan,address=10.0.0.5,group=web`. */
function nicWord(nic: NicRequest): string {
  const parts = [nic.network];
  if (nic.address) parts.push(`address=${nic.address}`);
  if (nic.mac) parts.push(`mac=${nic.mac}`);
  for (const group of nic.groups ?? []) parts.push(`group=${group}`);
  return parts.join(",");
}

/** NICs as options; a single one in the short form. */
function nicOptions(nics: NicRequest[]): string[] {
  const [only] = nics;
  if (nics.length !== 1 || !only) return nics.flatMap((nic) => option("--network", nicWord(nic)));
  return [
    ...option("--network", only.network),
    ...(only.groups ?? []).flatMap((group) => option("--group", group)),
    ...(only.address ? option("--address", only.address) : []),
    ...(only.mac ? option("--mac", only.mac) : []),
  ];
}

export function launch(form: Launch): string {
  const words = ["vbm", "launch", form.image || "IMAGE"];
  if (form.name) words.push(form.name);
  if (form.vcpus !== DEFAULT_VCPUS) words.push("--cpus", String(form.vcpus));
  if (form.memoryMib !== DEFAULT_MEMORY_MIB) words.push("--memory", size(form.memoryMib));
  if (form.diskMib) words.push("--disk", size(form.diskMib));
  words.push(...nicOptions(form.nics));
  if (form.driver) words.push("--driver", form.driver);
  if (form.node) words.push("--node", form.node);
  if (form.stopped) words.push("--stopped");
  for (const [key, value] of Object.entries(form.labels)) words.push(...option("--label", `${key}=${value}`));
  return line(...words);
}

/** A verb for a VM; `force` matters to `delete` only. */
export function power(verb: Verb, vm: string, force = false): string {
  switch (verb) {
    case "force-off":
      return line("vbm", "stop", vm, "--force");
    case "delete":
      return line("vbm", "delete", vm, ...(force ? ["--force"] : []));
    default:
      return line("vbm", verb, vm);
  }
}

export const vms = () => line("vbm", "list");
export const vm = (name: string) => line("vbm", "info", name);
export const serial = (name: string) => line("vbm", "console", name);
export const screenshot = (name: string) => line("vbm", "screenshot", name, `${name}.png`);

export const networks = () => line("vbm", "network", "list");
export const network = (name: string) => line("vbm", "network", "info", name);
export const leases = (name: string) => line("vbm", "network", "leases", name);
export const networkDelete = (name: string) => line("vbm", "network", "delete", name);

export function networkCreate(form: CreateNetwork): string {
  const words = ["vbm", "network", "create", form.name || "NAME", form.cidr || "CIDR"];
  if (form.mode && form.mode !== "nat") words.push("--mode", form.mode);
  if (form.uplink) words.push("--uplink", form.uplink);
  if (form.serve_dhcp) words.push("--serve-dhcp");
  if (form.gateway) words.push("--gateway", form.gateway);
  if (form.pool_first && form.pool_last) words.push("--pool", `${form.pool_first}-${form.pool_last}`);
  for (const server of form.dns ?? []) words.push("--dns", server);
  if (form.domain) words.push(...option("--domain", form.domain));
  if (form.mtu) words.push("--mtu", String(form.mtu));
  if (form.lease_seconds) words.push("--lease", `${form.lease_seconds}s`);
  return line(...words);
}

export const groups = () => line("vbm", "group", "list");
const ruleWords = (rules: Rule[], known: Group[]) => rules.map((rule) => ruleText(rule, known));
export const groupCreate = (name: string, rules: Rule[], closed = false, known: Group[] = []) =>
  line("vbm", "group", "create", name || "NAME", ...ruleWords(rules, known), ...(closed ? ["--egress-closed"] : []));
export const groupAllow = (name: string, rules: Rule[], known: Group[] = []) =>
  line("vbm", "group", "allow", name, ...ruleWords(rules, known));
export const groupDeny = (name: string, rules: Rule[], known: Group[] = []) =>
  line("vbm", "group", "deny", name, ...ruleWords(rules, known));
export const groupDelete = (name: string) => line("vbm", "group", "delete", name);

/** What changes the groups of a VM's NIC from `before` to `after`: one line a group. */
export function groupChange(vmName: string, networkName: string, before: string[], after: string[]): string {
  const change = (verb: string, group: string) =>
    line("vbm", "group", verb, group, vmName, ...option("--network", networkName));
  const added = after.filter((group) => !before.includes(group)).map((group) => change("attach", group));
  const gone = before.filter((group) => !after.includes(group)).map((group) => change("detach", group));
  return [...added, ...gone].join("\n");
}

export const floatingIps = () => line("vbm", "floating-ip", "list");
export const floatingCreate = (address: string, name: string) =>
  line("vbm", "floating-ip", "create", ...(address ? [address] : []), ...(name ? ["--name", name] : []));
export const floatingAttach = (name: string, vmName: string, networkName?: string) =>
  line("vbm", "floating-ip", "attach", name, vmName, ...(networkName ? option("--network", networkName) : []));
export const floatingDetach = (name: string) => line("vbm", "floating-ip", "detach", name);
export const floatingDelete = (name: string) => line("vbm", "floating-ip", "delete", name);
export const floatingPool = (ranges: string[]) =>
  line("vbm", "floating-ip", "pool", ...(ranges.length > 0 ? ranges : ["none"]));

/** All limits of a port: what is not limited is said too. */
export function portLimit(vmName: string, networkName: string, limits: PortLimits): string {
  const words = ["vbm", "port", "limit", vmName, "--in", rateText(limits.in_kbit_per_second)];
  words.push("--out", rateText(limits.out_kbit_per_second), "--connections", String(limits.connections ?? "none"));
  return line(...words, ...option("--network", networkName));
}

/** What brings the allowed addresses of a port from `before` to `after`. */
export function portAllowed(vmName: string, networkName: string, before: string[], after: string[]): string {
  const change = (verb: string, addresses: string[]) =>
    addresses.length === 0
      ? []
      : [line("vbm", "port", verb, vmName, ...addresses, ...option("--network", networkName))];
  return [
    ...change("allow", after.filter((address) => !before.includes(address))),
    ...change("deny", before.filter((address) => !after.includes(address))),
  ].join("\n");
}

export const forwards = () => line("vbm", "forward", "list");
export const forwardDelete = (name: string) => line("vbm", "forward", "delete", name);

export function forwardCreate(form: CreateForward): string {
  const address = form.listen_address ? `${form.listen_address}:` : "";
  const protocol = form.protocol === "udp" ? "/udp" : "";
  const ports = `${address}${form.listen_port || "HOSTPORT"}:${form.target_port || "VMPORT"}${protocol}`;
  const words = ["vbm", "forward", "create", form.vm || "VM", ports];
  if (form.name) words.push("--name", form.name);
  if (form.network) words.push(...option("--network", form.network));
  return line(...words);
}

/** Files are named as they are on the browser's machine, without their directory: a browser does not tell it. */
export interface Import {
  name: string;
  disk: string;
  format: "qcow2" | "raw";
  kernel: string;
  initrd: string;
  cmdline: string;
}

export function imageImport(form: Import): string {
  const words = ["vbm", "image", "import", form.name || "NAME", ...option("--disk", form.disk || "FILE")];
  if (form.format === "raw") words.push("--format", "raw");
  if (form.kernel) {
    words.push(...option("--kernel", form.kernel), ...option("--initrd", form.initrd || "FILE"));
    if (form.cmdline !== DEFAULT_CMDLINE) words.push(...option("--cmdline", form.cmdline));
  }
  return line(...words);
}

export const images = () => line("vbm", "image", "list");
export const imageDelete = (name: string) => line("vbm", "image", "delete", name);
export const nodes = () => line("vbm", "node", "list");
export const operations = () => line("vbm", "operation", "list");
export const events = () => line("vbm", "events", "--follow");

export const snapshots = (name: string) => line("vbm", "snapshot", "list", name);
export const snapshotCreate = (name: string, snapshot: string) =>
  line("vbm", "snapshot", "create", name, ...(snapshot ? [snapshot] : []));
export const snapshotRevert = (name: string, snapshot: string) => line("vbm", "snapshot", "revert", name, snapshot);
export const snapshotDelete = (name: string, snapshot: string) => line("vbm", "snapshot", "delete", name, snapshot);
