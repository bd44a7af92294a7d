// The nouns of the API by short names. All are made from `openapi.json`.

import type { components } from "./schema";

type Schemas = components["schemas"];

export type Vm = Schemas["VmView"];
export type Network = Schemas["NetworkView"];
export type Port = Schemas["PortView"];
export type Group = Schemas["Group"];
export type Rule = Schemas["Rule"];
export type Forward = Schemas["ForwardView"];
export type FloatingIp = Schemas["FloatingIp"];
export type PortLimits = Schemas["PortLimits"];
export type Image = Schemas["Image"];
export type Node = Schemas["Node"];
export type Operation = Schemas["Operation"];
export type Event = Schemas["EventView"];
export type Version = Schemas["Version"];
export type Problem = Schemas["Problem"];
export type Failure = Schemas["Error"];
export type PowerState = Schemas["PowerState"];
export type PowerAction = Schemas["PowerAction"];
export type DriverKind = Schemas["DriverKind"];
export type LaunchRequest = Schemas["LaunchRequest"];
export type NicRequest = Schemas["NicRequest"];
export type NetworkMode = Schemas["NetworkMode"];
export type CreateNetwork = Schemas["CreateNetwork"];
export type CreateForward = Schemas["CreateForward"];
export type CreateImage = Schemas["CreateImage"];
export type Blob = Schemas["Blob"];
export type Session = Schemas["SessionView"];
export type ConsoleKind = Schemas["ConsoleKind"];
export type Snapshot = Schemas["SnapshotView"];
