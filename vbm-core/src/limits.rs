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
/// The most disks of a VM beside the one it boots from.
pub const VM_MAX_DISKS: usize = 16;
/// The most snapshots of a VM.
pub const VM_MAX_SNAPSHOTS: usize = 64;
/// The most security groups of a port.
pub const PORT_MAX_GROUPS: usize = 16;
/// The most addresses beside its own that a port may be allowed.
pub const PORT_MAX_PAIRS: usize = 16;
/// The least bandwidth that a port may be limited to: one full frame is a fifth of a second.
pub const PORT_MIN_KBIT_PER_SECOND: u32 = 64;
/// The most bandwidth that a port may be limited to; the kernel's buckets count bytes of a second in 32 bits.
pub const PORT_MAX_KBIT_PER_SECOND: u32 = 32_000_000;
/// The most connections that a port may be limited to: each new one is looked for among them.
pub const PORT_MAX_CONNECTIONS: u32 = 65_536;
/// The most ranges of the pool of floating IPs.
pub const FLOATING_POOL_MAX_RANGES: usize = 16;
/// The most addresses of the pool of floating IPs.
pub const FLOATING_POOL_MAX_ADDRESSES: u64 = 65_536;
/// The most ports of one forward.
pub const FORWARD_MAX_PORTS: u16 = 512;
/// The most rules of a security group.
pub const GROUP_MAX_RULES: usize = 256;
/// The most DNS servers a network hands out.
pub const NETWORK_MAX_DNS_SERVERS: usize = 4;
/// The most time servers a network hands out.
pub const NETWORK_MAX_NTP_SERVERS: usize = 4;
/// The most search domains a network hands out.
pub const NETWORK_MAX_SEARCH_DOMAINS: usize = 8;
/// The most routes a network hands out.
pub const NETWORK_MAX_ROUTES: usize = 32;
/// The most boot files, one an architecture, that a network hands out.
pub const NETWORK_MAX_BOOT_FILES: usize = 16;
/// The longest name of a boot file or server: one DHCP option.
pub const BOOT_FILE_MAX_BYTES: usize = 255;
/// The least wait of a VM that can do without IPv4 (RFC 8925 section 3.4).
pub const V6_ONLY_WAIT_MIN_SECONDS: u32 = 300;
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
/// The least MTU of a network with IPv6 (RFC 8200 section 5).
pub const NETWORK6_MIN_MTU_BYTES: u16 = 1_280;
/// The largest IPv6 subnet: one link is a /64 (RFC 7421).
pub const NETWORK6_MIN_PREFIX_BITS: u8 = 64;
/// The smallest IPv6 subnet: the subnet's own address, the gateway and two VMs.
pub const NETWORK6_MAX_PREFIX_BITS: u8 = 126;
/// The most pools of a network, in each family.
pub const NETWORK_MAX_POOLS: usize = 16;
/// The most excluded ranges of a network, in each family.
pub const NETWORK_MAX_EXCLUSIONS: usize = 64;
/// The most reservations of a network, in each family.
pub const NETWORK_MAX_RESERVATIONS: usize = 1_024;
/// The longest that an address rests after it was given back: 7 days.
pub const QUARANTINE_MAX_SECONDS: u32 = 7 * 24 * 3600;
/// The longest domain (RFC 1035 section 2.3.4, as text).
pub const DOMAIN_MAX_BYTES: usize = 253;
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
