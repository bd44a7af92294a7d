//! The rules that are used, each with the line that the kernel must then hold: written by hand, from the manual of iptables.

pub(crate) struct Word {
    /// As users write it.
    pub(crate) text: &'static str,
    /// In the chain of who may be reached, of IPv4; `None`: it is about what leaves, or about IPv6.
    pub(crate) enters: Option<&'static str>,
}

pub(crate) const RULES: [Word; 11] = [
    Word {
        text: "tcp/80",
        enters: Some("-p tcp -m tcp --dport 80 -j ACCEPT"),
    },
    Word {
        text: "tcp/22@192.0.2.0/24",
        enters: Some("-s 192.0.2.0/24 -p tcp -m tcp --dport 22 -j ACCEPT"),
    },
    Word {
        text: "udp/5000-5010@10.0.0.0/8",
        enters: Some("-s 10.0.0.0/8 -p udp -m udp --dport 5000:5010 -j ACCEPT"),
    },
    Word {
        text: "icmp",
        enters: Some("-p icmp -j ACCEPT"),
    },
    Word {
        text: "icmp/type=8",
        enters: Some("-p icmp -m icmp --icmp-type 8 -j ACCEPT"),
    },
    Word {
        text: "any@10.9.0.0/24",
        enters: Some("-s 10.9.0.0/24 -j ACCEPT"),
    },
    Word {
        text: "tcp/9@self",
        enters: Some("-p tcp -m set --match-set SET src -m tcp --dport 9 -j ACCEPT"),
    },
    Word {
        text: "tcp/443@fd00::/64",
        enters: None,
    },
    Word {
        text: "icmpv6/type=128",
        enters: None,
    },
    Word {
        text: "egress:udp/53",
        enters: None,
    },
    Word {
        text: "egress:tcp/1-1024@192.0.2.0/24",
        enters: None,
    },
];

/// What a rule must be in the chain of who may be reached. `set`: the set of the members of the group that it stands in.
pub(crate) fn line(rule: &vbm_core::Rule, set: Option<&str>) -> Option<String> {
    let same = |word: &&Word| word.text.parse::<vbm_core::Rule>().as_ref() == Ok(rule);
    let line = RULES.iter().find(same).expect("a rule of the table").enters?;
    match (line.contains("SET"), set) {
        // "Itself" is nobody outside of a group.
        (true, None) => None,
        (true, Some(set)) => Some(line.replace("SET", set)),
        (false, _) => Some(line.to_owned()),
    }
}
