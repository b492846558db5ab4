//! `twinshard balancer` and `twinshard server`: one node each. `twinshard up` starts both as its children; they can be run by hand too.

use super::{
    Failure,
    access::AccessArgs,
    make_dir,
    rows::RowsArgs,
    up::{cluster_id, open_register, register_is_where_its_data_is},
};
use crate::{
    disk::{Disk, RealDisk},
    entropy::Entropy,
    http::{self, HttpSettings, server::ServerIdentity},
    log::file::Identity,
    net::{Network, TokioNetwork},
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
};
use clap::{Args, ValueEnum};
use std::{
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
    id::{ClusterId, OwnerNumber, ServerId},
    map::Address,
    planted::Planted,
    schema::is_name,
    server::{ServerConfig, ServerSettings},
};

/// Where balancers and servers listen unless they are told otherwise (API.md).
const PORT: u16 = 5000;

/// For a balancer that is the only one: nobody controls beside it, so it need not wait whether somebody does.
fn only_balancer(policy: Policy, entropy: &Entropy) -> BalancerConfig {
    BalancerConfig { controller_after: twinshard_core::time::Duration::ZERO, ..one_of_several(policy, entropy) }
}

fn one_of_several(policy: Policy, entropy: &Entropy) -> BalancerConfig {
    BalancerConfig { policy, seed: entropy.below(u64::MAX), ..BalancerConfig::default() }
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
    #[command(flatten)]
    pub access: AccessArgs,
    /// Whether it logs failures alone, where `TWINSHARD_LOG` does not say.
    #[arg(skip)]
    pub is_quiet: bool,
}

impl From<PolicyArg> for Choices {
    /// For a cluster whose command tells what happens itself.
    fn from(policy: PolicyArg) -> Self {
        Self { policy, on_conflict: OnConflictArg::Replace, access: AccessArgs::default(), is_quiet: true }
    }
}

fn cluster(text: &str) -> Result<ClusterId, String> {
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
    /// The cluster's id, 32 hexadecimal digits (in DIR/cluster of `twinshard up`)
    #[arg(long, value_parser = cluster)]
    cluster: ClusterId,
    /// The file with the secret that the cluster's nodes share; readable by its owner only
    #[arg(long)]
    secret_file: PathBuf,
    /// Speak with a supervisor over standard input and output, and end when it does
    #[arg(long, hide = true)]
    child: bool,
}

impl NodeArgs {
    fn parts(&self) -> Result<NodeParts<TokioNetwork>, Failure> {
        Ok(NodeParts {
            network: TokioNetwork,
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
  twinshard balancer --dir data --cluster $(cat data/cluster) --secret-file data/secret --listen 127.0.0.1:5000
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
    /// Runs until it is told to stop.
    ///
    /// # Errors
    /// If it cannot start, or its parts fail.
    pub async fn run(self) -> Result<(), Failure> {
        super::log_to_stderr();
        self.choices.access.check(&[self.listen.ip()])?;
        if !self.node.child {
            let tokens = self.choices.access.token_dir(&self.node.dir);
            let program = std::env::current_exe()?;
            let settings = ProcessSettings { program, dir: self.node.dir.clone(), cluster: self.node.cluster, tokens };
            let provisioner = Arc::new(ProcessProvisioner::new(settings));
            let ready = |http: String| println!("Twinshard's balancer is ready on http://{http}");
            if self.role != RoleArg::Both {
                return Err(Failure::new("a register in a file has one balancer, which has to do both: leave --role out"));
            }
            make_dir(&self.node.dir)?;
            register_is_where_its_data_is(&self.node.dir)?;
            let register = open_register(&self.node.dir, self.node.cluster)?;
            #[cfg(feature = "docker")]
            if self.provisioner == ProvisionerArg::Docker {
                // Its servers look for it.
                let secret = Secret::load_or_create(&self.node.secret_file)?;
                self.choices.access.settle(&[self.listen.ip()], &self.node.dir)?;
                let provisioner = self.docker.provisioner(self.node.cluster, secret, &self.choices.access).await?;
                let keeper = provisioner.clone();
                return tokio::select! {
                    result = self.serve(register, provisioner, told_to_stop()?, ready) => result,
                    () = keeper.keep_databases() => Ok(()),
                };
            }
            let result = self.serve(register, Arc::clone(&provisioner), told_to_stop()?, ready).await;
            provisioner.shutdown().await;
            return result;
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

    async fn serve<G: Register, P: Provisioner>(
        &self,
        register: G,
        provisioner: P,
        stop: impl Future<Output = ()>,
        ready: impl FnOnce(String),
    ) -> Result<(), Failure> {
        let node = self.node.parts()?;
        let listener = listen(&node.network, self.listen).await?;
        let http = TokioNetwork::local_address(&listener)?;
        let policy = match self.choices.policy {
            PolicyArg::Ring => Policy::Ring,
            PolicyArg::Classic => Policy::Classic,
            PolicyArg::LeastLoaded => Policy::LeastLoaded,
        };
        let role = match self.role {
            RoleArg::Both => Role::Both,
            RoleArg::Router => Role::Router,
            RoleArg::Controller => Role::Controller,
        };
        let config = if self.several { one_of_several(policy, &node.entropy) } else { only_balancer(policy, &node.entropy) };
        let config = BalancerConfig { role, ..config };
        let balancer = BalancerNode::start(BalancerParts { node, config, register, provisioner }).await?;
        let (access, hosts) = self.choices.access.settle(&[self.listen.ip()], &self.node.dir)?;
        let settings = HttpSettings { on_conflict: self.choices.on_conflict.into(), access, hosts, ..HttpSettings::default() };
        let router = http::balancer::router(balancer.handle(), settings.clone());
        let stopper = balancer.stop();
        let watch = stopper.watch();
        // Before its id is minted it would refuse every request.
        let mut stop = std::pin::pin!(stop);
        tokio::select! {
            is_ready = async { balancer.handle().ready().await } => if is_ready { ready(http) },
            () = &mut stop => stopper.stop(),
        }
        let serve = http::serve::<TokioNetwork>(listener, router, settings, watch);
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
    access: AccessArgs,
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

    /// Runs until it is told to stop.
    ///
    /// # Errors
    /// If it cannot start, or its storage fails.
    pub async fn run(self) -> Result<(), Failure> {
        super::log_to_stderr();
        self.access.check(&self.addresses())?;
        let result = if self.child {
            let ready =
                |address: &Address| print_line(&ReadyLine::Ready { http: address.http.to_string(), peer: address.peer.to_string() });
            self.serve(input_closed(), ready).await
        } else {
            let name = self.name.clone();
            let ready = |address: &Address| {
                println!("{name} is ready on http://{}", address.http);
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
        let args = NodeArgs { dir: self.dir.clone(), cluster, secret_file, child: self.child };
        let listener = listen(&TokioNetwork, self.listen_address()).await?;
        let mut stop = std::pin::pin!(stop);
        // It may wait for a database.
        let server = tokio::select! {
            () = &mut stop => return Ok(()),
            server = self.start(&args, &self.dir) => server?,
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
        register_is_where_its_data_is(&self.dir)?;
        let secret_file = self.dir.join("secret");
        Secret::load_or_create(&secret_file)?;
        let args = NodeArgs { dir: self.dir.clone(), cluster, secret_file, child: false };
        // Before anything else, so that a taken port is told at once.
        let listener = listen(&TokioNetwork, self.listen_address()).await?;
        let http = TokioNetwork::local_address(&listener)?;
        let mut stop = std::pin::pin!(stop);
        let store = self.dir.join("store");
        let server = tokio::select! {
            () = &mut stop => return Ok(()),
            server = self.start(&args, &store) => server?,
        };
        let register = open_register(&self.dir, cluster)?;
        let node = args.parts()?;
        let config = only_balancer(Policy::default(), &node.entropy);
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

    async fn start(&self, args: &NodeArgs, dir: &Path) -> Result<ServerNode, Failure> {
        let node = args.parts()?;
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(dir)?);
        let server = ServerId(self.id);
        // Far below the largest number, so that it can grow for ever.
        let first_owner = OwnerNumber(node.entropy.below(1 << 48) + 1);
        let identity = Identity { cluster: args.cluster, server };
        let Opened { log, rows, recovered, owner } = self.rows.open(disk, identity, first_owner).await?;
        let config = ServerConfig { server, owner, settings: ServerSettings::default(), planted: Planted::NONE };
        let peer_address = self.peer_listen.to_string();
        Ok(ServerNode::start(ServerParts { node, cluster: args.cluster, peer_address, config, recovered, log, rows }).await?)
    }

    async fn serve_http(
        &self,
        server: ServerNode,
        listener: <TokioNetwork as Network>::Listener,
        standalone: Option<crate::handle::BalancerHandle>,
        stop: impl Future<Output = ()>,
        ready: impl FnOnce(&Address) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let address = Address { http: TokioNetwork::local_address(&listener)?.into(), peer: server.peer_address().into() };
        let identity = ServerIdentity { name: self.name.clone(), number: self.number, standalone };
        let (access, hosts) = self.access.settle(&self.addresses(), &self.dir)?;
        let settings = HttpSettings { access, hosts, ..HttpSettings::default() };
        let router = http::server::router(server.handle(), identity, settings.clone());
        let stopper = server.stop();
        ready(&address)?;
        let serve = http::serve::<TokioNetwork>(listener, router, settings, stopper.watch());
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

async fn listen(network: &TokioNetwork, address: SocketAddr) -> Result<<TokioNetwork as Network>::Listener, Failure> {
    let failed = |error| Failure::new(format!("could not listen on {address}: {error}"));
    network.listen(&address.to_string()).await.map_err(failed)
}

fn print_line(line: &ReadyLine) -> Result<(), Failure> {
    writeln!(io::stdout(), "{}", serde_json::to_string(line)?)?;
    Ok(())
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
