//! Who a fault strikes, as scenario files spell it. A role is resolved by the world when the fault begins.

use core::fmt;
use serde::Deserialize;

/// Who a fault strikes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub enum Target {
    /// A server by name: `Server2`.
    Server(String),
    /// A balancer by number from 0: `balancer` or `balancer 1`.
    Balancer(u32),
    /// The server that leads the shard when the fault begins: `primary of sh1`.
    PrimaryOf(String),
    /// The first server, by id, that holds a member of the shard without leading it: `backup of sh1`.
    BackupOf(String),
    /// All of those: `backups of sh1`.
    BackupsOf(String),
    /// The balancer that is controller: `controller`.
    Controller,
    /// Every server: `servers`.
    Servers,
    /// Every balancer: `balancers`.
    Balancers,
    /// Every client: `clients`.
    Clients,
}

impl TryFrom<String> for Target {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        Ok(match words.as_slice() {
            ["primary", "of", shard] => Self::PrimaryOf((*shard).to_owned()),
            ["backup", "of", shard] => Self::BackupOf((*shard).to_owned()),
            ["backups", "of", shard] => Self::BackupsOf((*shard).to_owned()),
            ["balancer"] => Self::Balancer(0),
            ["balancer", number] => {
                Self::Balancer(number.parse().map_err(|_| format!("'{number}' is not the number of a balancer, such as 0"))?)
            }
            ["controller"] => Self::Controller,
            ["servers"] => Self::Servers,
            ["balancers"] => Self::Balancers,
            ["clients"] => Self::Clients,
            [name] => Self::Server((*name).to_owned()),
            _ => {
                return Err(format!(
                    "'{text}' names nobody: write a server's name, 'balancer 0', 'controller', 'primary of sh1', 'backup of sh1', \
                     'backups of sh1', 'servers', 'balancers' or 'clients'"
                ));
            }
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(name) => f.write_str(name),
            Self::Balancer(number) => write!(f, "balancer {number}"),
            Self::PrimaryOf(shard) => write!(f, "primary of {shard}"),
            Self::BackupOf(shard) => write!(f, "backup of {shard}"),
            Self::BackupsOf(shard) => write!(f, "backups of {shard}"),
            Self::Controller => f.write_str("controller"),
            Self::Servers => f.write_str("servers"),
            Self::Balancers => f.write_str("balancers"),
            Self::Clients => f.write_str("clients"),
        }
    }
}
