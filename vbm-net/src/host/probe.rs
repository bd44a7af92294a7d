//! Whether this host can do it: asked once, before anything is promised.

use super::{
    exec::{self, Program},
    netns::NetNs,
    sysctl,
};
use crate::NetError;
use std::path::Path;

/// Checks rights, programs, kernel facilities and the firewall's backend. Changes nothing, but for loading `br_netfilter` and `nf_conntrack`.
pub(crate) async fn probe(host: &NetNs) -> Result<(), NetError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(NetError::NotRoot {
            doing: "managing networks".into(),
        });
    }
    for program in Program::NEEDED {
        program.find()?;
    }
    if !Path::new("/dev/net/tun").exists() {
        return Err(NetError::MissingFacility {
            facility: "tun (taps)",
            why: "/dev/net/tun does not exist".into(),
        });
    }
    backend(host).await?;
    kernel_modules(host).await
}

/// One backend, and it is nft: rules in two backends act on the same packets without seeing each other.
async fn backend(host: &NetNs) -> Result<(), NetError> {
    let failed = |why: String| NetError::Firewall {
        why,
        fix: "try `iptables -S` by hand and follow what it says".into(),
    };
    let asked = host.run(|| {
        let iptables = iptables::new(false).map_err(|e| e.to_string())?;
        iptables
            .get_policy("filter", "FORWARD")
            .map_err(|e| e.to_string())
    });
    asked
        .await?
        .map_err(|why| failed(format!("iptables does not answer: {why}")))?;
    let version = exec::must(
        host,
        Program::Iptables,
        &["--version"],
        "",
        "asking for its version",
    )
    .await?;
    if !version.contains("nf_tables") {
        return Err(NetError::Firewall {
            why: format!(
                "iptables is '{}', but VBM works with nf_tables and does not mix the two",
                version.trim()
            ),
            fix: "update-alternatives --set iptables /usr/sbin/iptables-nft".into(),
        });
    }
    let legacy = host.run(legacy_tables).await?;
    if legacy
        && let Ok(said) = exec::run(host, Program::IptablesLegacySave, &[], "").await
        && has_rules(&said.out)
    {
        return Err(NetError::Firewall {
            why: "rules stand in iptables-legacy beside iptables-nft, and neither sees the other's".into(),
            fix: "move them: iptables-legacy-save | iptables-restore, then flush them with iptables-legacy"
                .into(),
        });
    }
    Ok(())
}

/// Whether any legacy table is registered in the namespace of this thread.
fn legacy_tables() -> bool {
    std::fs::read_to_string("/proc/thread-self/net/ip_tables_names")
        .is_ok_and(|names| !names.trim().is_empty())
}

/// Whether a save holds anything: a rule, a chain of somebody's, a policy that is not the default.
fn has_rules(save: &str) -> bool {
    crate::plan::tables::parse(save)
        .values()
        .flat_map(|t| t.values())
        .any(|c| !c.rules.is_empty() || c.policy.as_deref() != Some("ACCEPT"))
}

/// Modules that nothing loads by itself on a host that was just booted, and what shows that they are there.
const MODULES: [(&str, &str); 2] = [
    ("br_netfilter", "/proc/sys/net/bridge"),
    ("nf_conntrack", "/proc/sys/net/netfilter/nf_conntrack_tcp_loose"),
];

/// Bridged packets must pass iptables, and rules must know flows.
async fn kernel_modules(host: &NetNs) -> Result<(), NetError> {
    for (module, shows) in MODULES {
        if !host.run(move || Path::new(shows).exists()).await? {
            // It answers in its own time; whether it helped shows below.
            let modprobe = tokio::process::Command::new("modprobe")
                .arg(module)
                .kill_on_drop(true)
                .output();
            drop(tokio::time::timeout(exec::EXEC_MAX, modprobe).await);
        }
    }
    let missing = host
        .run(|| {
            sysctl::groups()
                .into_iter()
                .filter(|setting| !setting.optional)
                .find(|setting| !Path::new("/proc/sys/net").join(&setting.path).exists())
        })
        .await?;
    missing.map_or(Ok(()), |setting| Err(sysctl::missing(&setting)))
}

#[cfg(test)]
mod tests {
    use super::has_rules;

    #[test]
    fn an_empty_legacy_table_is_no_mix_but_a_rule_a_chain_or_a_policy_is() {
        assert!(!has_rules("*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n"));
        assert!(has_rules(
            "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j DROP\nCOMMIT\n"
        ));
        assert!(has_rules("*filter\n:INPUT DROP [0:0]\nCOMMIT\n"));
        assert!(has_rules("*filter\n:DOCKER - [0:0]\nCOMMIT\n"));
    }
}
