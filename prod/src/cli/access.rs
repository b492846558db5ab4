//! Who may connect: the flags of nodes, and those of the commands that ask a balancer.

use super::{
    Failure,
    client::{Client, ClientError},
};
use crate::{
    http::{
        Hosts,
        access::{Access, Tokens},
    },
    secret::Secret,
};
use clap::{Args, ValueEnum};
use std::{
    ffi::OsString,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// Whether clients are asked for a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AuthArg {
    /// Whoever can connect may do everything.
    Off,
    /// Only who shows a token of the cluster.
    Required,
}

/// Who is let in.
#[derive(Clone, Debug, Default, Args)]
pub struct AccessArgs {
    /// Whether clients must show a token; left out, nodes listen on this machine's loopback only
    #[arg(long, value_enum)]
    pub auth: Option<AuthArg>,
    /// Where read.token, data.token and admin.token are, made if they are not there [default: DIR/tokens]
    #[arg(long, value_name = "TOKENS_DIR")]
    pub tokens: Option<PathBuf>,
}

impl AccessArgs {
    /// Where the tokens are, if there are any.
    #[must_use]
    pub fn token_dir(&self, dir: &Path) -> Option<PathBuf> {
        (self.auth == Some(AuthArg::Required)).then(|| self.tokens.clone().unwrap_or_else(|| dir.join("tokens")))
    }

    /// As another node of the cluster with this directory is told it.
    #[must_use]
    pub fn words(&self, dir: &Path) -> Vec<OsString> {
        match (self.auth, self.token_dir(dir)) {
            (_, Some(tokens)) => vec!["--auth".into(), "required".into(), "--tokens".into(), tokens.into()],
            (Some(_), None) => vec!["--auth".into(), "off".into()],
            (None, None) => vec![],
        }
    }

    /// Refuses to listen beyond this machine unless the operator has said who may come in.
    ///
    /// # Errors
    /// Usage.
    pub fn check(&self, addresses: &[IpAddr]) -> Result<(), Failure> {
        match addresses.iter().find(|address| !address.is_loopback()) {
            Some(address) if self.auth.is_none() => Err(Failure::usage(format!(
                "{address} is not a loopback address: to listen there say --auth required, or --auth off where only a network of its own \
                 can reach it"
            ))),
            Some(_) | None => Ok(()),
        }
    }

    /// What HTTP is to know, of a node that listens there and has this directory.
    ///
    /// # Errors
    /// As [`Self::check`]; or there are no tokens and none can be made.
    pub fn settle(&self, addresses: &[IpAddr], dir: &Path) -> Result<(Access, Hosts), Failure> {
        self.check(addresses)?;
        let is_loopback = addresses.iter().all(IpAddr::is_loopback);
        let Some(tokens) = self.token_dir(dir) else {
            return Ok((Access::Open, if is_loopback { Hosts::Loopback } else { Hosts::NoDomains }));
        };
        super::make_dir(&tokens)?;
        let access = Access::Tokens(Arc::new(Tokens::load_or_create(&tokens)?));
        Ok((access, if is_loopback { Hosts::Loopback } else { Hosts::Any }))
    }
}

/// The balancer that a command asks.
#[derive(Clone, Debug, Args)]
pub struct Target {
    /// The balancer
    #[arg(long, default_value = "http://127.0.0.1:5000", env = "TWINSHARD_URL", value_parser = Client::check_url)]
    pub url: String,
    /// The file with the token to show, where the balancer asks for one
    #[arg(long, env = "TWINSHARD_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// With https://: the file with the certificate to trust, the cluster's ca.pem
    #[arg(long, env = "TWINSHARD_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

impl Target {
    /// A client of it; every request ends within `timeout`.
    ///
    /// # Errors
    /// If a file is not what it should be.
    pub fn client(&self, timeout: Duration) -> Result<Client, Failure> {
        let client = Client::new(&self.url, timeout).map_err(|error: ClientError| Failure::usage(error.to_string()))?;
        let client = match &self.ca {
            Some(file) => client.trusting(file).map_err(|error| Failure::usage(error.to_string()))?,
            None => client,
        };
        Ok(match &self.token_file {
            Some(file) => client.with_token(&Secret::load(file)?),
            None => client,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(auth: Option<AuthArg>, addresses: &[&str]) -> Option<(bool, Hosts)> {
        let dir = tempfile::tempdir().expect("a directory");
        let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().expect("an address")).collect();
        let access = AccessArgs { auth, tokens: None }.settle(&addresses, dir.path());
        access.ok().map(|(access, hosts)| (matches!(access, Access::Tokens(_)), hosts))
    }

    #[test]
    fn nobody_listens_beyond_loopback_without_having_said_who_may_come() {
        let here = ["127.0.0.1", "::1"];
        for wide in [["127.0.0.1", "0.0.0.0"], ["::", "::1"], ["10.0.0.1", "127.0.0.1"]] {
            assert_eq!(settle(None, &wide), None);
            assert_eq!(settle(Some(AuthArg::Off), &wide), Some((false, Hosts::NoDomains)));
            assert_eq!(settle(Some(AuthArg::Required), &wide), Some((true, Hosts::Any)));
        }
        assert_eq!(settle(None, &here), Some((false, Hosts::Loopback)));
        assert_eq!(settle(Some(AuthArg::Off), &here), Some((false, Hosts::Loopback)));
        assert_eq!(settle(Some(AuthArg::Required), &here), Some((true, Hosts::Loopback)));
    }
}
