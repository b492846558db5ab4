//! `twinshard balancer` and `twinshard server`: one node each. `twinshard up` starts both as its children; they can be run by hand too.

use super::{
    Failure, make_dir,
    register::{self, RegisterArgs},
    rows::RowsArgs,
    serving::{self, ServingArgs},
    up::cluster_id,
};
use crate::{
    disk::{Disk, RealDisk},
    entropy::Entropy,
    http::{self, server::ServerIdentity},
    log::file::Identity,
    net::{Network, tls::TlsNetwork},
    node::{BalancerNode, BalancerParts, NodeParts, ServerNode, ServerParts, StorageMode},
    peer::PeerSettings,
    provision::{
        Provisioner,
        process::{ProcessProvisioner, ProcessSettings, ReadyLine},
    },
    register::Register,
    secret::Secret,
    store::Opened,
    supervised::{self, FromBalancer, Supervised},
    telemetry::Telemetry,
};
use clap::{Args, ValueEnum, value_parser};
use std::{
    ffi::OsString,
    future::Future,
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, BufReader},
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use twinshard_core::{
    balancer::{BalancerConfig, Policy, Role},
    command::OnConflict,
    id::{ClusterId, Incarnation, OwnerNumber, ServerId},
    map::Address,
    planted::Planted,
    schema::is_name,
    server::{ServerConfig, ServerSettings},
    time::Duration as CoreDuration,
};

/// Where balancers and servers listen unless they are told otherwise (API.md).
const PORT: u16 = 5000;

/// For a balancer that is the only one: nobody controls beside it, so it need not wait whether somebody does.
fn only_balancer(config: BalancerConfig) -> BalancerConfig {
    BalancerConfig { controller_after: CoreDuration::ZERO, ..config }
}

/// How reads are spread over replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PolicyArg {
    /// Consistent hashing with bounded loads.
    Ring,
    /// The 512-slot ring of the course.
    Classic,
    /// The less loaded of two chosen at random.
    LeastLoaded,
}

impl PolicyArg {
    /// As it stands on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::Classic => "classic",
            Self::LeastLoaded => "least-loaded",
        }
    }
}

/// What a balancer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoleArg {
    /// It routes requests, and controls the cluster when it is its turn.
    Both,
    /// It routes requests only.
    Router,
    /// It controls the cluster only: no reads and writes here.
    Controller,
}

/// How a balancer starts servers.
#[cfg(feature = "docker")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProvisionerArg {
    /// As child processes, below its directory.
    Process,
    /// As containers of a deployment.
    Docker,
}

/// What a write does with a key that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnConflictArg {
    /// The new row takes the place of the old.
    Replace,
    /// Nothing of that shard's part is applied: 409.
    Error,
    /// The old row stays.
    Skip,
}

impl OnConflictArg {
    /// As it stands on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Replace => "replace",
            Self::Error => "error",
            Self::Skip => "skip",
        }
    }
}

impl From<OnConflictArg> for OnConflict {
    fn from(arg: OnConflictArg) -> Self {
        match arg {
            OnConflictArg::Replace => Self::Replace,
            OnConflictArg::Error => Self::Error,
            OnConflictArg::Skip => Self::Skip,
        }
    }
}

/// What a balancer is told of its work.
#[derive(Clone, Debug, Args)]
pub struct Choices {
    /// How reads are spread over replicas
    #[arg(long, value_enum, default_value_t = PolicyArg::Ring)]
    pub policy: PolicyArg,
    /// What writes do with a key that exists, where neither the request nor its /init says
    #[arg(long, value_enum, default_value_t = OnConflictArg::Replace)]
    pub on_conflict: OnConflictArg,
    /// Silence of a server after which its requests go elsewhere, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 500, value_parser = value_parser!(u64).range(200..=60_000))]
    pub suspect_after: u64,
    /// Silence of a server after which it is taken for dead and started again, in milliseconds; not less than --suspect-after
    #[arg(long, value_name = "MS", default_value_t = 3_000, value_parser = value_parser!(u64).range(200..=3_600_000))]
    pub replace_after: u64,
    #[command(flatten)]
    pub serving: ServingArgs,
    /// Whether it logs failures alone, where `TWINSHARD_LOG` does not say.
    #[arg(skip)]
    pub is_quiet: bool,
}

impl From<PolicyArg> for Choices {
    /// For a cluster whose command tells what happens itself.
    fn from(policy: PolicyArg) -> Self {
        Self {
            policy,
            on_conflict: OnConflictArg::Replace,
            suspect_after: 500,
            replace_after: 3_000,
            serving: ServingArgs::default(),
            is_quiet: true,
        }
    }
}

impl Choices {
    /// As a balancer with this directory is told it.
    #[must_use]
    pub fn words(&self, dir: &Path) -> Vec<OsString> {
        let (suspect_after, replace_after) = (self.suspect_after.to_string(), self.replace_after.to_string());
        let own = [
            ("--policy", self.policy.name()),
            ("--on-conflict", self.on_conflict.name()),
            ("--suspect-after", &suspect_after),
            ("--replace-after", &replace_after),
        ];
        let own = own.into_iter().flat_map(|(flag, value)| [flag.into(), value.into()]);
        let quiet = self.is_quiet && self.serving.log.log.is_none() && std::env::var_os(super::LOG).is_none();
        own.chain(self.serving.words(dir)).chain(quiet.then(|| "--log=error".into())).collect()
    }

    /// Refuses what contradicts itself, for nodes that listen there.
    ///
    /// # Errors
    /// Usage.
    pub fn check(&self, addresses: &[IpAddr]) -> Result<(), Failure> {
        if self.replace_after < self.suspect_after {
            return Err(Failure::usage("--replace-after is less than --suspect-after: a server is suspected before it is replaced"));
        }
        self.serving.access.check(addresses)
    }

    fn config(&self, entropy: &Entropy) -> BalancerConfig {
        let policy = match self.policy {
            PolicyArg::Ring => Policy::Ring,
            PolicyArg::Classic => Policy::Classic,
            PolicyArg::LeastLoaded => Policy::LeastLoaded,
        };
        BalancerConfig {
            policy,
            seed: entropy.below(u64::MAX),
            suspect_after: CoreDuration::from_millis(self.suspect_after),
            replace_after: CoreDuration::from_millis(self.replace_after),
            ..BalancerConfig::default()
        }
    }
}

pub(super) fn cluster(text: &str) -> Result<ClusterId, String> {
    u128::from_str_radix(text, 16).map(ClusterId).map_err(|_| "a cluster id is 32 hexadecimal digits".to_owned())
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "an address is IP:PORT, such as 127.0.0.1:5000".to_owned())
}

fn server_name(text: &str) -> Result<String, String> {
    if is_name(text) { Ok(text.to_owned()) } else { Err("a name has 1 to 63 letters, digits, '_', '.' and '-'".to_owned()) }
}

/// What both kinds of node are told.
#[derive(Debug, Args)]
struct NodeArgs {
    /// The directory that holds its state
    #[arg(long)]
    dir: PathBuf,
    /// The cluster's id, 32 hexadecimal digits [default: the one in DIR/cluster, drawn if there is none]
    #[arg(long, value_parser = cluster)]
    cluster: Option<ClusterId>,
    /// The file with the secret that the cluster's nodes share; readable by its owner only
    #[arg(long)]
    secret_file: PathBuf,
    /// Speak with a supervisor over standard input and output, and end when it does
    #[arg(long, hide = true)]
    child: bool,
}

impl NodeArgs {
    fn cluster(&self) -> Result<ClusterId, Failure> {
        self.cluster.map_or_else(|| cluster_id(&self.dir), Ok)
    }

    fn parts(&self, network: TlsNetwork) -> Result<NodeParts<TlsNetwork>, Failure> {
        Ok(NodeParts {
            network,
            secret: Secret::load(&self.secret_file)?,
            entropy: Entropy::from_system().map_err(|error| Failure::new(format!("no entropy: {error}")))?,
            storage: StorageMode::Threads,
            peers: PeerSettings::default(),
            notes: None,
        })
    }
}

/// Runs one balancer in the foreground.
#[derive(Debug, Args)]
#[command(after_help = "Usually `twinshard up` runs it. By hand, with its servers as child processes:
  twinshard balancer --dir data --secret-file data/secret --listen 127.0.0.1:5000
It keeps the cluster map in DIR/register.redb and may be killed at any time: nothing is lost.")]
pub struct BalancerCommand {
    #[command(flatten)]
    node: NodeArgs,
    /// Where clients are served
    #[arg(long, default_value = "127.0.0.1:5000", value_parser = address)]
    listen: SocketAddr,
    #[command(flatten)]
    choices: Choices,
    /// What it does; of several balancers one at least has to control, one to route
    #[arg(long, value_enum, default_value_t = RoleArg::Both)]
    role: RoleArg,
    #[command(flatten)]
    register: RegisterArgs,
    /// How servers are started
    #[cfg(feature = "docker")]
    #[arg(long, value_enum, default_value_t = ProvisionerArg::Process)]
    provisioner: ProvisionerArg,
    #[cfg(feature = "docker")]
    #[command(flatten)]
    docker: super::deploy::DockerArgs,
    /// There are other balancers on the same register
    #[arg(long, hide = true, requires = "child")]
    several: bool,
}

impl BalancerCommand {
    /// Refuses what contradicts itself.
    ///
    /// # Errors
    /// Usage.
    pub fn check(&self) -> Result<(), Failure> {
        self.choices.check(&[self.listen.ip()])?;
        let is_shared = self.register.is_shared();
        if self.role != RoleArg::Both && !is_shared && !self.node.child {
            return Err(Failure::usage("a register in a file has one balancer, which has to do both: leave --role out"));
        }
        #[cfg(feature = "docker")]
        if self.provisioner == ProvisionerArg::Docker {
            return Ok(());
        }
        if self.role != RoleArg::Router && is_shared {
            return Err(Failure::usage(
                "servers that are child processes have one balancer: with --register mysql say --role router or --provisioner docker",
            ));
        }
        Ok(())
    }

    /// Runs until it is told to stop.
    ///
    /// # Errors
    /// If it cannot start, or its parts fail.
    pub async fn run(self) -> Result<(), Failure> {
        self.choices.serving.log.start()?;
        self.check()?;
        if !self.node.child {
            return self.run_alone().await;
        }
        let (supervised, work) = supervised::connect(BufReader::new(tokio::io::stdin()), tokio::io::stdout());
        let Supervised { provisioner, register, lines } = supervised;
        let said = lines.clone();
        let ready = move |http| {
            if said.try_send(FromBalancer::Ready { http }).is_err() {
                tracing::warn!("the supervisor does not listen");
            }
        };
        // Serving ends when the supervisor does: the channel's work is over then. It is driven beside the node all the time.
        let (over, ended) = watch::channel(false);
        let serve = async {
            let ended = ending(ended);
            let result = self.serve(register, provisioner, ended, ready).await;
            if let Err(failure) = &result {
                let _ = lines.send(FromBalancer::Failed { reason: failure.to_string() }).await;
            }
            result
        };
        let speak = async {
            let result = work.await;
            over.send_replace(true);
            result
        };
        let mut serve = std::pin::pin!(serve);
        let mut speak = std::pin::pin!(speak);
        tokio::select! {
            result = &mut serve => {
                // The last words are still to be written.
                let _ = tokio::time::timeout(Duration::from_millis(200), speak).await;
                result
            }
            spoken = &mut speak => {
                if let Err(error) = spoken {
                    tracing::warn!(%error, "the supervisor's channel broke");
                }
                serve.await
            }
        }
    }

    /// Runs without a supervisor.
    async fn run_alone(self) -> Result<(), Failure> {
        make_dir(&self.node.dir)?;
        #[cfg(feature = "docker")]
        if self.provisioner == ProvisionerArg::Docker {
            return self.run_on_docker().await;
        }
        let program = std::env::current_exe()?;
        let cluster = self.node.cluster()?;
        let settings =
            ProcessSettings { program, dir: self.node.dir.clone(), cluster, serving: self.choices.serving.words(&self.node.dir) };
        let provisioner = Arc::new(ProcessProvisioner::new(settings));
        let register = self.register.open(&self.node.dir, cluster, self.role != RoleArg::Router).await?;
        let result = self.serve(register, Arc::clone(&provisioner), told_to_stop()?, self.tell_ready()).await;
        provisioner.shutdown().await;
        result
    }

    #[cfg(feature = "docker")]
    async fn run_on_docker(self) -> Result<(), Failure> {
        let (dir, cluster) = (&self.node.dir, self.node.cluster()?);
        // The servers look for it.
        let secret = Secret::load_or_create(&self.node.secret_file)?;
        self.choices.serving.access.settle(&[self.listen.ip()], dir)?;
        let provisioner = self.docker.provisioner(cluster, secret, &self.choices.serving, self.register.is_shared()).await?;
        let stop = told_to_stop()?;
        let serve = async {
            let register = self.register.open_deployed(&provisioner, dir, cluster, self.role != RoleArg::Router).await?;
            self.serve(register, provisioner.clone(), stop, self.tell_ready()).await
        };
        tokio::select! {
            result = serve => result,
            () = provisioner.keep() => Ok(()),
        }
    }

    async fn serve<G: Register, P: Provisioner>(
        &self,
        register: G,
        provisioner: P,
        stop: impl Future<Output = ()>,
        ready: impl FnOnce(String),
    ) -> Result<(), Failure> {
        let (serving, addresses) = (&self.choices.serving, [self.listen.ip()]);
        let authority = serving.authority(&self.node.dir)?;
        let (network, clients) = serving::networks(authority.as_ref(), &serving.tls.tls_name, &addresses)?;
        let node = self.node.parts(network)?;
        let listener = listen(&clients, self.listen).await?;
        let http = TlsNetwork::local_address(&listener)?;
        let role = match self.role {
            RoleArg::Both => Role::Both,
            RoleArg::Router => Role::Router,
            RoleArg::Controller => Role::Controller,
        };
        let config = BalancerConfig { role, ..self.choices.config(&node.entropy) };
        let config = if self.several || self.register.is_shared() { config } else { only_balancer(config) };
        let balancer = BalancerNode::start(BalancerParts { node, config, register, provisioner }).await?;
        let settings = serving.settle(&addresses, &serving.tls.tls_name, &self.node.dir, self.choices.on_conflict)?;
        let router = http::balancer::router(balancer.handle(), settings.clone());
        let stopper = balancer.stop();
        let watch = stopper.watch();
        // Before its id is minted it would refuse every request.
        let mut stop = std::pin::pin!(told_before(stop, balancer.handle().telemetry().clone(), settings.stop_grace));
        tokio::select! {
            is_ready = async { balancer.handle().ready().await } => if is_ready { ready(http) },
            () = &mut stop => stopper.stop(),
        }
        let serve = http::serve::<TlsNetwork>(listener, router, settings, watch);
        let mut serve = std::pin::pin!(serve);
        let is_over = tokio::select! {
            () = &mut stop, if !*stopper.watch().borrow() => { stopper.stop(); false }
            // The node has ended by itself.
            () = &mut serve => true,
        };
        if !is_over {
            serve.await;
        }
        Ok(balancer.join().await?)
    }

    fn tell_ready(&self) -> impl FnOnce(String) + use<> {
        let scheme = self.choices.serving.tls.scheme();
        move |http| println!("Twinshard's balancer is ready on {scheme}://{http}")
    }
}

/// Runs one server in the foreground.
#[derive(Debug, Args)]
#[command(after_help = "Usually a balancer has it started. On its own, a cluster of one member that takes /config itself:
  twinshard server --standalone --port 5001
  curl -X POST http://127.0.0.1:5001/config -d '{\"schema\":{\"columns\":[\"Stud_id\",\"Stud_name\"],\"dtypes\":[\"Number\",\"String\"]},\"shards\":[\"sh1\"]}'")]
pub struct ServerCommand {
    /// A server on its own: no balancer, no other servers
    #[arg(long)]
    standalone: bool,
    /// The directory that holds its log and rows; made if it is not there
    #[arg(long, default_value = "data-server")]
    dir: PathBuf,
    /// Its id, as the cluster map has it
    #[arg(long, default_value_t = 1)]
    id: u64,
    /// Its name
    #[arg(long, default_value = "Server0", value_parser = server_name)]
    name: String,
    /// Its number for /home
    #[arg(long, default_value_t = 0)]
    number: u64,
    /// The cluster's id, 32 hexadecimal digits
    #[arg(long, value_parser = cluster, required_unless_present = "standalone")]
    cluster: Option<ClusterId>,
    /// The file with the secret that the cluster's nodes share; readable by its owner only
    #[arg(long, required_unless_present = "standalone")]
    secret_file: Option<PathBuf>,
    /// Where people and tools are served; port 0 takes any. Left out: 127.0.0.1:5000
    #[arg(long, value_parser = address)]
    listen: Option<SocketAddr>,
    /// Short for --listen 127.0.0.1:PORT
    #[arg(long, conflicts_with = "listen")]
    port: Option<u16>,
    /// Where other nodes are served; port 0 takes any
    #[arg(long, default_value = "127.0.0.1:0", value_parser = address)]
    peer_listen: SocketAddr,
    #[command(flatten)]
    serving: ServingArgs,
    #[command(flatten)]
    rows: RowsArgs,
    /// Speak with a supervisor over standard input and output, and end when it does
    #[arg(long, hide = true)]
    child: bool,
}

impl ServerCommand {
    /// A server that a supervisor starts says where it listens; people want to know it beforehand.
    fn listen_address(&self) -> SocketAddr {
        let default = if self.child { 0 } else { PORT };
        self.listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], self.port.unwrap_or(default))))
    }

    fn addresses(&self) -> [IpAddr; 2] {
        [self.listen_address().ip(), self.peer_listen.ip()]
    }

    /// Refuses to listen where nobody was said to come.
    ///
    /// # Errors
    /// Usage.
    pub fn check(&self) -> Result<(), Failure> {
        self.serving.access.check(&self.addresses())
    }

    /// Runs until it is told to stop.
    ///
    /// # Errors
    /// If it cannot start, or its storage fails.
    pub async fn run(self) -> Result<(), Failure> {
        self.serving.log.start()?;
        self.check()?;
        let result = if self.child {
            let ready =
                |address: &Address| print_line(&ReadyLine::Ready { http: address.http.to_string(), peer: address.peer.to_string() });
            self.serve(input_closed(), ready).await
        } else {
            let (name, scheme) = (self.name.clone(), self.serving.tls.scheme());
            let ready = |address: &Address| {
                println!("{name} is ready on {scheme}://{}", address.http);
                Ok(())
            };
            self.serve(told_to_stop()?, ready).await
        };
        if let (true, Err(failure)) = (self.child, &result) {
            // Once it was ready, nobody listens any more.
            let _ = print_line(&ReadyLine::Failed { reason: failure.to_string() });
        }
        result
    }

    async fn serve(&self, stop: impl Future<Output = ()>, ready: impl FnOnce(&Address) -> Result<(), Failure>) -> Result<(), Failure> {
        if self.standalone {
            return self.serve_standalone(stop, ready).await;
        }
        let (Some(cluster), Some(secret_file)) = (self.cluster, self.secret_file.clone()) else {
            return Err(Failure::new("--cluster and --secret-file are needed"));
        };
        make_dir(&self.dir)?;
        let args = NodeArgs { dir: self.dir.clone(), cluster: Some(cluster), secret_file, child: self.child };
        let (network, clients) = self.networks()?;
        let listener = listen(&clients, self.listen_address()).await?;
        let mut stop = std::pin::pin!(stop);
        // It may wait for a database.
        let server = tokio::select! {
            () = &mut stop => return Ok(()),
            server = self.start(&args, network, &self.dir) => server?,
        };
        self.serve_http(server, listener, None, stop, ready).await
    }

    /// The server with a balancer of its own in one process: /config is that one's /init.
    async fn serve_standalone(
        &self,
        stop: impl Future<Output = ()>,
        ready: impl FnOnce(&Address) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        make_dir(&self.dir)?;
        let cluster = cluster_id(&self.dir)?;
        let secret_file = self.dir.join("secret");
        Secret::load_or_create(&secret_file)?;
        let args = NodeArgs { dir: self.dir.clone(), cluster: Some(cluster), secret_file, child: false };
        // Before anything else, so that a taken port is told at once.
        let (network, clients) = self.networks()?;
        let listener = listen(&clients, self.listen_address()).await?;
        let http = TlsNetwork::local_address(&listener)?;
        let mut stop = std::pin::pin!(stop);
        // Before the store is made, which must not be there without a register.
        let register = register::open_file(&self.dir, cluster)?;
        let store = self.dir.join("store");
        let server = tokio::select! {
            () = &mut stop => return Ok(()),
            server = self.start(&args, network.clone(), &store) => server?,
        };
        let node = args.parts(network)?;
        let config = only_balancer(BalancerConfig { seed: node.entropy.below(u64::MAX), ..BalancerConfig::default() });
        let address = Address { http: http.into(), peer: server.peer_address().into() };
        let provisioner = Itself { id: ServerId(self.id), address };
        let balancer = BalancerNode::start(BalancerParts { node, config, register, provisioner }).await?;
        // Before its id is minted it would refuse /config.
        let result = if balancer.handle().ready().await {
            self.serve_http(server, listener, Some(balancer.handle()), stop, ready).await
        } else {
            Ok(())
        };
        balancer.stop().stop();
        balancer.join().await?;
        result
    }

    /// What clients call it, besides its addresses.
    fn names(&self) -> Vec<String> {
        self.serving.tls.tls_name.iter().cloned().chain([self.name.clone()]).collect()
    }

    fn networks(&self) -> Result<(TlsNetwork, TlsNetwork), Failure> {
        Ok(serving::networks(self.serving.authority(&self.dir)?.as_ref(), &self.names(), &self.addresses())?)
    }

    async fn start(&self, args: &NodeArgs, network: TlsNetwork, dir: &Path) -> Result<ServerNode, Failure> {
        let node = args.parts(network)?;
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(dir)?);
        let server = ServerId(self.id);
        // Far below the largest number, so that it can grow for ever.
        let first_owner = OwnerNumber(node.entropy.below(1 << 48) + 1);
        let cluster = args.cluster()?;
        let identity = Identity { cluster, server };
        let Opened { log, rows, recovered, owner } = self.rows.open(disk, identity, first_owner).await?;
        let config = ServerConfig {
            server,
            owner,
            incarnation: Incarnation(node.entropy.below(u64::MAX) + 1),
            settings: ServerSettings::default(),
            planted: Planted::NONE,
        };
        let peer_address = self.peer_listen.to_string();
        Ok(ServerNode::start(ServerParts { node, cluster, peer_address, config, recovered, log, rows }).await?)
    }

    async fn serve_http(
        &self,
        server: ServerNode,
        listener: <TlsNetwork as Network>::Listener,
        standalone: Option<crate::handle::BalancerHandle>,
        stop: impl Future<Output = ()>,
        ready: impl FnOnce(&Address) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let address = Address { http: TlsNetwork::local_address(&listener)?.into(), peer: server.peer_address().into() };
        let identity = ServerIdentity { name: self.name.clone(), number: self.number, standalone };
        let settings = self.serving.settle(&self.addresses(), &self.names(), &self.dir, OnConflictArg::Replace)?;
        let router = http::server::router(server.handle(), identity, settings.clone());
        let stopper = server.stop();
        ready(&address)?;
        // A child is stopped by its balancer, which asks it nothing more.
        let grace = if self.child { Duration::ZERO } else { settings.stop_grace };
        let stop = told_before(stop, server.handle().telemetry().clone(), grace);
        let serve = http::serve::<TlsNetwork>(listener, router, settings, stopper.watch());
        let mut serve = std::pin::pin!(serve);
        let finished = tokio::select! {
            () = stop => { stopper.stop(); false }
            () = &mut serve => true
        };
        if !finished {
            serve.await;
        }
        Ok(server.join().await?)
    }
}

/// The provisioner of a standalone server: it runs already, and is the only one there is.
#[derive(Debug)]
struct Itself {
    id: ServerId,
    address: Address,
}

impl Provisioner for Itself {
    async fn start(&self, server: ServerId, name: &str, _: u64, _: bool) -> Result<Address, String> {
        if server == self.id { Ok(self.address.clone()) } else { Err(format!("a standalone server has no room for {name}")) }
    }

    async fn stop(&self, _: ServerId, _: &str) -> Result<(), String> {
        Ok(())
    }
}

async fn listen(network: &TlsNetwork, address: SocketAddr) -> Result<<TlsNetwork as Network>::Listener, Failure> {
    let failed = |error| Failure::new(format!("could not listen on {address}: {error}"));
    network.listen(&address.to_string()).await.map_err(failed)
}

fn print_line(line: &ReadyLine) -> Result<(), Failure> {
    writeln!(io::stdout(), "{}", serde_json::to_string(line)?)?;
    Ok(())
}

/// Ends a while after `stop` does: until then the node serves, and says that it is not ready, so that whoever spreads requests over nodes
/// asks it nothing more.
async fn told_before(stop: impl Future<Output = ()>, telemetry: Telemetry, grace: Duration) {
    stop.await;
    telemetry.stop();
    tokio::time::sleep(grace).await;
}

/// Ends on Ctrl-C or SIGTERM.
fn told_to_stop() -> Result<impl Future<Output = ()>, Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// Ends when standard input is closed: the supervisor wants it, or is gone.
async fn input_closed() {
    let mut byte = [0];
    let mut input = tokio::io::stdin();
    while matches!(input.read(&mut byte).await, Ok(1..)) {}
}

async fn ending(mut over: watch::Receiver<bool>) {
    let _ = over.wait_for(|over| *over).await;
}
