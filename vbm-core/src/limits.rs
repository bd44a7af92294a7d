//! Every limit of the nouns, with its unit last. Limits of a mechanism stand in the crate of the mechanism.

/// The longest name: one DNS label (RFC 1035).
pub const NAME_MAX_CHARS: usize = 63;
/// The deepest node path.
pub const NODE_PATH_MAX_DEPTH: usize = 8;
/// The most virtual CPUs of a VM.
pub const VM_MAX_VCPUS: u16 = 512;
/// The least memory of a VM. The tiny guest boots with 64.
pub const VM_MIN_MEMORY_MIB: u32 = 32;
/// The most memory of a VM: 8 TiB.
pub const VM_MAX_MEMORY_MIB: u32 = 8 * 1024 * 1024;
/// The largest disk: 64 TiB.
pub const DISK_MAX_MIB: u64 = 64 * 1024 * 1024;
/// The most NICs of a VM (VirtualBox offers eight).
pub const VM_MAX_NICS: usize = 8;
/// The most snapshots of a VM.
pub const VM_MAX_SNAPSHOTS: usize = 64;
/// The most security groups of a port.
pub const PORT_MAX_GROUPS: usize = 16;
/// The most rules of a security group.
pub const GROUP_MAX_RULES: usize = 256;
/// The most DNS servers a network hands out.
pub const NETWORK_MAX_DNS_SERVERS: usize = 4;
/// The most DNS servers that a network's gateway asks.
pub const NETWORK_MAX_DNS_UPSTREAMS: usize = 4;
/// The most user data of a VM, decoded: as much as EC2 takes.
pub const USER_DATA_MAX_BYTES: usize = 16 * 1024;
/// The most SSH keys of a VM.
pub const VM_MAX_SSH_KEYS: usize = 32;
/// The longest line of an SSH key: one of RSA with 16,384 bits has 3 KiB.
pub const SSH_KEY_MAX_BYTES: usize = 8 * 1024;
/// The smallest IPv4 network: a /30 has two usable addresses, the gateway and one VM.
pub const NETWORK_MAX_PREFIX_BITS: u8 = 30;
/// The largest IPv4 network.
pub const NETWORK_MIN_PREFIX_BITS: u8 = 8;
/// The least MTU of a network: what IPv4 must carry whole (RFC 791).
pub const NETWORK_MIN_MTU_BYTES: u16 = 576;
/// The most MTU of a network.
pub const NETWORK_MAX_MTU_BYTES: u16 = 9_000;
/// The shortest DHCP lease.
pub const LEASE_MIN_SECONDS: u32 = 60;
/// The longest DHCP lease: 30 days.
pub const LEASE_MAX_SECONDS: u32 = 30 * 24 * 3600;
/// The most labels of an object.
pub const LABELS_MAX: usize = 64;
/// The longest key or value of a label.
pub const LABEL_MAX_BYTES: usize = 256;
/// The most objects that one page of a list holds.
pub const PAGE_MAX_ITEMS: usize = 1_000;
/// The most text that a kernel command line may have.
pub const CMDLINE_MAX_BYTES: usize = 2_048;
