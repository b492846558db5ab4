//! How nodes serve: who is let in, in TLS or not, what bounds it, and what is logged. What one node of a cluster is told of it, it tells those it starts.

use super::{Failure, access::AccessArgs, logs::LogArgs, nodes::OnConflictArg};
use crate::{
    cgroup,
    http::{BODIES_BYTES_MAX, Bodies, HttpSettings, SPARE_MAX, check_origin},
    net::tls::TlsNetwork,
    tls::{Authority, TlsError},
};
use clap::{Args, value_parser};
use rustix::process::{Resource, getrlimit};
use std::{
    ffi::OsString,
    net::IpAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::Duration,
};

/// The longest deadline that may be asked for, in milliseconds: an hour.
const DEADLINE_MAX_MS: u64 = 3_600_000;

/// TLS or not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct TlsArgs {
    /// Serve clients over HTTPS, and speak TLS with other nodes, which need the same authority
    #[arg(long)]
    pub tls: bool,
    /// Where the authority's ca.pem and ca-key.pem are, made if there is no such directory [default: DIR/tls]
    #[arg(long, value_name = "CA_DIR", requires = "tls")]
    pub ca: Option<PathBuf>,
    /// Names or addresses that clients call the nodes by, besides this machine's own; several, or commas between them
    #[arg(long, value_name = "NAME", requires = "tls", value_delimiter = ',')]
    pub tls_name: Vec<String>,
}

impl TlsArgs {
    /// The scheme of URLs.
    #[must_use]
    pub const fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }
}

/// What bounds requests.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct LimitArgs {
    /// The largest body of a request, in bytes; not more than 32 MiB, which is what nodes can tell each other
    #[arg(long, value_name = "BYTES", default_value_t = 32 << 20, value_parser = value_parser!(u32).range(1_024..=32 << 20))]
    body_max: u32,
    /// The most memory for the bodies of requests under way, in bytes, with 128 for each value in them and long texts twice; what does not fit is refused at once [default: a quarter of what the container has, at most 384 MiB]
    #[arg(long, value_name = "BYTES", value_parser = value_parser!(u64).range(1 << 20..=1 << 40))]
    bodies_max: Option<u64>,
    /// The most rows of one write
    #[arg(long, value_name = "ROWS", default_value_t = 100_000, value_parser = value_parser!(u32).range(1..=100_000))]
    rows_max: u32,
    /// The deadline of a request, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 10_000, value_parser = value_parser!(u64).range(1..=DEADLINE_MAX_MS))]
    request_timeout: u64,
    /// The deadline of /init, /add, /rm, /move and /drain, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 120_000, value_parser = value_parser!(u64).range(1..=DEADLINE_MAX_MS))]
    admin_timeout: u64,
    /// How long a client may take to send its headers, and then its body, and to read nothing of its answer, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 30_000, value_parser = value_parser!(u64).range(1..=DEADLINE_MAX_MS))]
    read_timeout: u64,
    /// How long a connection may be without a request, in milliseconds; longer than proxies and clients keep theirs
    #[arg(long, value_name = "MS", default_value_t = 75_000, value_parser = value_parser!(u64).range(1..=DEADLINE_MAX_MS))]
    idle_timeout: u64,
    /// How long a node that is told to stop says that it is not ready, and still serves, in milliseconds: as long as a proxy takes to see it
    #[arg(long, value_name = "MS", default_value_t = 250, value_parser = value_parser!(u64).range(0..=DEADLINE_MAX_MS))]
    stop_grace: u64,
    /// The most connections of clients at once, and never more than the process may have files for; on more, only probes and operators are answered
    #[arg(long, default_value_t = 4_096, value_parser = value_parser!(u32).range(1..=1 << 20))]
    connections_max: u32,
    /// The most of them from one address, but for those of this machine
    #[arg(long, default_value_t = 2_048, value_parser = value_parser!(u32).range(1..=1 << 20))]
    address_connections_max: u32,
    /// The most answers that are sent page by page at once; one more is refused at once
    #[arg(long, default_value_t = 256, value_parser = value_parser!(u32).range(1..=1 << 20))]
    streams_max: u32,
    /// The most requests of clients under way at once; one more is refused at once
    #[arg(long, default_value_t = 4_096, value_parser = value_parser!(u32).range(1..=1 << 20))]
    requests_max: u32,
    /// The most requests a second of one client's address; one more is refused at once [default: no such bound]
    #[arg(long, value_name = "REQUESTS")]
    rate_max: Option<NonZeroU32>,
    /// The origin of web pages that may ask, such as https://app.example; several, or commas between them [default: none]
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',', value_parser = check_origin)]
    allow_origin: Vec<String>,
}

impl LimitArgs {
    fn words(&self) -> impl Iterator<Item = OsString> + use<> {
        let numbers = [
            ("--body-max", Some(self.body_max.into())),
            ("--bodies-max", self.bodies_max),
            ("--rows-max", Some(self.rows_max.into())),
            ("--request-timeout", Some(self.request_timeout)),
            ("--admin-timeout", Some(self.admin_timeout)),
            ("--read-timeout", Some(self.read_timeout)),
            ("--idle-timeout", Some(self.idle_timeout)),
            ("--stop-grace", Some(self.stop_grace)),
            ("--connections-max", Some(self.connections_max.into())),
            ("--address-connections-max", Some(self.address_connections_max.into())),
            ("--streams-max", Some(self.streams_max.into())),
            ("--requests-max", Some(self.requests_max.into())),
            ("--rate-max", self.rate_max.map(|rate| rate.get().into())),
        ];
        let numbers = numbers.into_iter().filter_map(|(flag, number): (&str, Option<u64>)| Some([flag.into(), number?.to_string().into()]));
        let origins: Vec<[OsString; 2]> = self.allow_origin.iter().map(|origin| ["--allow-origin".into(), origin.into()]).collect();
        numbers.chain(origins).flatten()
    }
}

/// All of it.
#[derive(Clone, Debug, Args)]
pub struct ServingArgs {
    #[command(flatten)]
    pub access: AccessArgs,
    #[command(flatten)]
    pub tls: TlsArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub log: LogArgs,
}

impl Default for ServingArgs {
    fn default() -> Self {
        let none = HttpSettings::default();
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let limits = LimitArgs {
            body_max: count(none.body_bytes_max),
            bodies_max: None,
            rows_max: count(none.rows_max),
            request_timeout: millis(none.request_timeout),
            admin_timeout: millis(none.admin_timeout),
            read_timeout: millis(none.read_timeout),
            idle_timeout: millis(none.idle_timeout),
            stop_grace: millis(none.stop_grace),
            connections_max: count(none.connections_max),
            address_connections_max: count(none.address_connections_max),
            streams_max: count(none.streams_max),
            requests_max: count(none.requests_max),
            rate_max: none.rate_max,
            allow_origin: none.allow_origins,
        };
        Self { access: AccessArgs::default(), tls: TlsArgs::default(), limits, log: LogArgs::default() }
    }
}

impl ServingArgs {
    /// As another node of the cluster with this directory is told it.
    #[must_use]
    pub fn words(&self, dir: &Path) -> Vec<OsString> {
        let mut words = self.access.words(dir);
        if let Some(ca) = self.ca(dir) {
            words.extend(["--tls".into(), "--ca".into(), ca.into()]);
            words.extend(self.tls.tls_name.iter().flat_map(|name| ["--tls-name".into(), name.into()]));
        }
        words.extend(self.limits.words());
        words.extend(self.log.words());
        words
    }

    fn ca(&self, dir: &Path) -> Option<PathBuf> {
        self.tls.tls.then(|| self.tls.ca.clone().unwrap_or_else(|| dir.join("tls")))
    }

    /// The certificate that clients have to trust, if there is one, of a node with this directory.
    #[must_use]
    pub fn certificate(&self, dir: &Path) -> Option<PathBuf> {
        self.ca(dir).map(|ca| ca.join("ca.pem"))
    }

    /// The authority of a node with this directory, if it speaks TLS.
    ///
    /// # Errors
    /// If it cannot be read or made.
    pub fn authority(&self, dir: &Path) -> Result<Option<Authority>, TlsError> {
        self.ca(dir).map(|ca| Authority::load_or_create(&ca)).transpose()
    }

    /// What HTTP is to know, of a node that listens there, is called so and has this directory.
    ///
    /// # Errors
    /// As [`AccessArgs::settle`].
    pub fn settle(&self, addresses: &[IpAddr], names: &[String], dir: &Path, on_conflict: OnConflictArg) -> Result<HttpSettings, Failure> {
        let (access, hosts) = self.access.settle(addresses, dir)?;
        let limits = self.limits.clone();
        let LimitArgs { body_max, bodies_max, rows_max, request_timeout, admin_timeout, read_timeout, .. } = limits;
        let LimitArgs { idle_timeout, stop_grace, connections_max, address_connections_max, streams_max, requests_max, .. } = limits;
        Ok(HttpSettings {
            body_bytes_max: body_max as usize,
            bodies: Bodies::new(usize::try_from(bodies_max.unwrap_or_else(|| bodies_bytes_max(cgroup::memory_max())))?),
            rows_max: rows_max as usize,
            request_timeout: Duration::from_millis(request_timeout),
            admin_timeout: Duration::from_millis(admin_timeout),
            read_timeout: Duration::from_millis(read_timeout),
            idle_timeout: Duration::from_millis(idle_timeout),
            stop_grace: Duration::from_millis(stop_grace),
            connections_max: connections_max_of(connections_max as usize, getrlimit(Resource::Nofile).current),
            address_connections_max: address_connections_max as usize,
            streams_max: streams_max as usize,
            requests_max: requests_max as usize,
            rate_max: limits.rate_max,
            allow_origins: limits.allow_origin,
            dates: true,
            on_conflict: on_conflict.into(),
            life: u64::from(getrandom::u32().map_err(|error| Failure::new(format!("no entropy: {error}")))?),
            hosts,
            // Of a page that a browser would take for one of these names the certificate is another's.
            names: if self.tls.tls { names.to_vec() } else { Vec::new() },
            access,
            ..HttpSettings::default()
        })
    }
}

/// The room for bodies in a container that has so much: what a body becomes on its way to other nodes takes more than the body, and the
/// node itself is there, too. Measured: three bodies of 30 MB at once, 106 MB with their values and texts, end a balancer of 512 MiB; this lets one in.
fn bodies_bytes_max(memory_max: Option<u64>) -> u64 {
    let most = BODIES_BYTES_MAX as u64;
    memory_max.map_or(most, |memory_max| (memory_max / 4).min(most))
}

/// As many connections as there are files for beside the node's own: a quarter, and some.
fn connections_max_of(wanted: usize, files_max: Option<u64>) -> usize {
    const OWN: usize = 32 + SPARE_MAX;
    let files = files_max.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX);
    wanted.min((files - files / 4).saturating_sub(OWN)).max(1)
}

/// The networks of a node: to other nodes, and to clients, who call it by those names and addresses.
///
/// # Errors
/// If the authority certifies nothing for one of the names.
pub fn networks(authority: Option<&Authority>, names: &[String], addresses: &[IpAddr]) -> Result<(TlsNetwork, TlsNetwork), TlsError> {
    let Some(authority) = authority else { return Ok(Default::default()) };
    let own = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into_iter();
    let listening = addresses.iter().filter(|address| !address.is_unspecified() && !address.is_loopback()).map(ToString::to_string);
    let names: Vec<String> = own.chain(listening).chain(names.iter().cloned()).collect();
    Ok((authority.between_nodes()?, authority.to_clients(&names)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Words {
        #[command(flatten)]
        serving: ServingArgs,
    }

    fn parse(words: &[&str]) -> ServingArgs {
        Words::try_parse_from(std::iter::once(&"x").chain(words)).expect("good words").serving
    }

    #[test]
    fn what_is_told_on_is_what_was_said() {
        let dir = Path::new("/there");
        let all = [
            "--auth",
            "required",
            "--tokens",
            "/t",
            "--tls",
            "--ca",
            "/c",
            "--tls-name",
            "a",
            "--tls-name",
            "b",
            "--body-max",
            "1025",
            "--bodies-max",
            "301989888",
            "--rows-max",
            "2",
            "--request-timeout",
            "3",
            "--admin-timeout",
            "4",
            "--read-timeout",
            "5",
            "--idle-timeout",
            "9",
            "--stop-grace",
            "0",
            "--connections-max",
            "6",
            "--address-connections-max",
            "10",
            "--streams-max",
            "11",
            "--requests-max",
            "7",
            "--rate-max",
            "8",
            "--allow-origin",
            "https://a.example",
            "--allow-origin",
            "http://b:8000",
            "--log",
            "warn,twinshard::request=debug",
            "--log-format",
            "json",
        ];
        assert_eq!(parse(&all).words(dir), all.map(OsString::from));
        let told = parse(&["--tls"]).words(dir);
        let again: Vec<&str> = told.iter().filter_map(|word| word.to_str()).collect();
        assert_eq!(parse(&again).tls, TlsArgs { tls: true, ca: Some("/there/tls".into()), tls_name: vec![] });
    }

    #[test]
    fn the_defaults_of_the_command_line_are_those_of_http() {
        assert_eq!(parse(&[]).limits, ServingArgs::default().limits);
    }

    #[test]
    fn certified_names_are_ones_that_requests_may_name() {
        let names = ["db.example".to_owned(), "Server0".to_owned()];
        for (words, allowed) in [(&["--tls"][..], &names[..]), (&[], &[])] {
            let settings = parse(words).settle(&[], &names, Path::new("/there"), OnConflictArg::Skip).expect("settled");
            assert_eq!(settings.names, allowed);
        }
        assert_eq!(parse(&["--tls", "--tls-name", "a,b", "--tls-name=c"]).tls.tls_name, ["a", "b", "c"]);
    }

    #[test]
    fn what_is_there_bounds_what_clients_may_take() {
        assert_eq!([None, Some(1 << 40), Some(512 << 20)].map(bodies_bytes_max), [384 << 20, 384 << 20, 128 << 20]);
        assert_eq!([None, Some(1 << 20), Some(256), Some(10)].map(|files| connections_max_of(4_096, files)), [4_096, 4_096, 128, 1]);
    }

    #[test]
    fn limits_reach_http() {
        let settings = parse(&["--rate-max", "8", "--body-max", "1024", "--allow-origin", "HTTPS://A.example,http://b"]).settle(
            &[],
            &[],
            Path::new("/there"),
            OnConflictArg::Skip,
        );
        let settings = settings.expect("settled");
        assert_eq!((settings.allow_origins, settings.dates), (vec!["https://a.example".to_owned(), "http://b".to_owned()], true));
        assert_eq!((settings.rate_max.map(NonZeroU32::get), settings.body_bytes_max), (Some(8), 1024));
    }
}
