//! `twinshard deploy`: the production system on a Docker engine. It can be repeated.

use super::{
    Failure, LOG, LOG_FORMAT, access::AuthArg, client::Client, nodes::Choices, serving::ServingArgs, topology::default_cluster,
    undeploy::remove_containers,
};
use crate::secret::Secret;
use crate::{
    docker::{CHAOS, CLUSTER, DEFAULT_NAME, Deployment, DockerError, MEMBERS, ROLE, Wanted, name_of},
    entropy::Entropy,
    provision::docker::{BALANCER, members, members_of},
};
use bollard::models::{ContainerSummary, ContainerSummaryStateEnum};
use clap::{Args, ValueEnum};
use http::Method;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// The label that says where a deployment's rows are.
pub(super) const ROWS: &str = "twinshard.rows";
/// The label that says where its register is.
pub(super) const REGISTER: &str = "twinshard.register";
/// The label, of an image and of a deployment, that says which program its databases are.
const DATABASE: &str = "twinshard.database";
/// The role of the container that makes a register anew, and its name.
pub(super) const RECOVERY: &str = "recovery";
/// What other containers call the controller where it has a container of its own.
const SHARD_MANAGER: &str = "shard_manager";
/// Where every container of ours has the volume of secrets.
const SECRET: &str = "/secret";
/// More are of no use on one machine.
const BALANCERS_MAX: i64 = 16;
/// How long a balancer may take until it serves. It adopts what runs, and needs no server for that.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// How often it is asked.
const READY_EVERY: Duration = Duration::from_millis(200);

/// Brings a deployment up on this machine's Docker engine: network, volumes, and the balancers, which start servers as they are asked for.
#[derive(Debug, Args)]
#[command(
    after_help = "Usually `make all` runs it, after building the image. Repeated, it makes the balancers anew and adopts the servers that run.
The default deployment gives its containers the bare names of their servers, so that `docker stop Server2` does what one expects;
another NAME is put before them."
)]
pub struct Deploy {
    /// The deployment
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
    /// The image [default: the one that `make image` builds for NAME]
    #[arg(long)]
    image: Option<String>,
    /// The port on the host; the second balancer has the next one, and so on
    #[arg(long, default_value_t = 5000)]
    port: u16,
    /// How many balancers; each serves every request, and brings back the others
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=BALANCERS_MAX))]
    balancers: u16,
    /// A container of its own for the controller, named shard_manager; the balancers only route then
    #[arg(long)]
    shard_manager: bool,
    /// The host's address; beyond loopback, tokens are required
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    bind: IpAddr,
    /// Speak no TLS any more, of a deployment that did
    #[arg(long, conflicts_with = "tls")]
    plain: bool,
    /// Allow `twinshard chaos` to break things in it on purpose
    #[arg(long)]
    chaos: bool,
    #[command(flatten)]
    choices: Choices,
    /// Where servers keep their rows; for good [default: what the deployment has; for a new one mysql, if its image is there]
    #[arg(long, value_enum)]
    rows: Option<StoreArg>,
    /// The most memory of each container, in MiB
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(64..))]
    memory: u32,
    /// The most processor time of each container, in thousandths of a core
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(10..))]
    cpu: u32,
    /// The engine's socket
    #[arg(long, default_value = "/var/run/docker.sock")]
    socket: PathBuf,
}

impl Deploy {
    /// Refuses settings that contradict each other.
    ///
    /// # Errors
    /// If they do.
    pub fn check(&self) -> Result<(), Failure> {
        let serving = &self.choices.serving;
        let auth = serving.access.auth.unwrap_or(AuthArg::Off);
        if !self.bind.is_loopback() && auth == AuthArg::Off {
            return Err(Failure::usage(format!("{} is not a loopback address: to publish there say --auth required", self.bind)));
        }
        if serving.access.tokens.is_some() || serving.tls.ca.is_some() {
            return Err(Failure::usage(
                "a deployment has its tokens and its authority in a volume, NAME-secret: put them there, and leave --tokens and --ca out",
            ));
        }
        self.choices.check(&[])
    }

    /// Runs it.
    ///
    /// # Errors
    /// If the engine does not answer or refuses, or the balancer does not come up.
    pub async fn run(self) -> Result<(), Failure> {
        self.check()?;
        let serving = &self.choices.serving;
        let auth = serving.access.auth.unwrap_or(AuthArg::Off);
        let deployment = Deployment::connect(&self.name).await?;
        let image = self.image.clone().unwrap_or_else(|| deployment.image());
        if deployment.image_labels(&image).await?.is_none() {
            return Err(Failure::new(format!("there is no image {image}: `make image NAME={}` builds it", self.name)));
        }
        let [data, secret] = [BALANCER, "secret"].map(|what| deployment.volume_name(what));
        let known = deployment.volume_labels(&data).await?;
        let (is_new, labels) = (known.is_none(), known.unwrap_or(self.first_labels(&deployment).await?));
        let stores = self.stores(&deployment, &labels).await?;
        self.refuse_downgrade(&deployment).await?;
        let members = self.members(&deployment, &image, &stores, [data.clone(), secret.clone()])?;
        println!("network    {}", deployment.name());
        deployment.ensure_network().await?;
        println!("volumes    {data} {secret}");
        let labels: Vec<(&str, String)> = labels.iter().map(|(label, value)| (label.as_str(), value.clone())).collect();
        deployment.ensure_volume(&data, if is_new { &labels } else { &[] }).await?;
        deployment.ensure_volume(&secret, &[]).await?;
        match stores.rows {
            StoreArg::Mysql => println!("rows       in a database beside each server ({})", stores.program),
            StoreArg::Redb => println!("rows       in a file of each server"),
        }
        match stores.register {
            StoreArg::Mysql => println!("register   in a database of its own"),
            StoreArg::Redb => println!("register   in a file of the balancer"),
        }
        while_held(&deployment, self.change(&deployment, &members)).await?;
        let scheme = serving.tls.scheme();
        let urls: Vec<String> = members.iter().filter_map(|member| member.published.map(|place| url(scheme, place))).collect();
        println!("Twinshard is ready on {}", urls.join(" and "));
        let name = deployment.container_name(BALANCER);
        if auth == AuthArg::Required {
            println!("Clients must show a token:  docker cp {name}:/secret/tokens/admin.token -  | tar -xO");
        }
        let trust = if serving.tls.tls { "--cacert ca.pem " } else { "" };
        if serving.tls.tls {
            println!("Clients must trust its authority:  docker cp {name}:/secret/tls/ca.pem ca.pem");
        }
        println!("Set it up with the course's default cluster:");
        println!("  curl {trust}-X POST {} -d '{}'", urls.first().map(|url| format!("{url}/init")).unwrap_or_default(), default_cluster());
        Ok(())
    }

    /// What a new deployment is marked with, for good: its cluster, and where its rows and its register are.
    async fn first_labels(&self, deployment: &Deployment) -> Result<BTreeMap<String, String>, Failure> {
        let cluster: String = entropy()?.bytes().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let program = deployment.image_labels(&deployment.database_image()).await?.map(|mut labels| labels.remove(DATABASE));
        let rows = self.rows.unwrap_or(if program.is_some() { StoreArg::Mysql } else { StoreArg::Redb });
        let labels = [
            (CLUSTER, cluster),
            (ROWS, rows.name().to_owned()),
            (REGISTER, rows.name().to_owned()),
            (DATABASE, program.flatten().unwrap_or_default()),
        ];
        Ok(labels.map(|(label, value)| (label.to_owned(), value)).into())
    }

    /// Where a deployment with these labels keeps what it has, if that is what is wanted and can be had.
    async fn stores(&self, deployment: &Deployment, labels: &BTreeMap<String, String>) -> Result<Stores, Failure> {
        let store =
            |label: &str| if labels.get(label).is_some_and(|is| is == StoreArg::Mysql.name()) { StoreArg::Mysql } else { StoreArg::Redb };
        let (rows, register) = (store(ROWS), store(REGISTER));
        let data = deployment.volume_name(BALANCER);
        let cluster = labels.get(CLUSTER).cloned();
        let cluster =
            cluster.ok_or_else(|| Failure::new(format!("the volume {data} is not one that this program made: it names no cluster")))?;
        if self.rows.is_some_and(|wanted| wanted != rows) {
            // Every server would find its rows gone.
            return Err(Failure::new(format!(
                "{0} keeps its rows in {1}, which cannot be changed: leave --rows out, deploy under another name, or remove it and all its \
                 rows with `make clean NAME={0}`",
                self.name,
                rows.name()
            )));
        }
        let made_by = labels.get(DATABASE).cloned().unwrap_or_default();
        if rows == StoreArg::Mysql {
            let image = deployment.database_image();
            let Some(found) = deployment.image_labels(&image).await? else {
                return Err(Failure::new(format!("there is no image {image}: `make db-image NAME={}` builds it", self.name)));
            };
            let program = found.get(DATABASE).cloned().unwrap_or_default();
            if made_by != program {
                // One program does not read the files of another.
                return Err(Failure::new(format!(
                    "the databases of {0} were made by {made_by}, and {image} is {program}: build that of {made_by} again with \
                     `make db-image NAME={0} DB_IMAGE={made_by}`",
                    self.name
                )));
            }
        }
        if register == StoreArg::Redb && (self.balancers > 1 || self.shard_manager) {
            return Err(Failure::new(format!(
                "the register of {0} would be in a file of its balancer, which is for one: several balancers take a deployment that is made \
                 with its rows in databases (--rows mysql, once `make db-image NAME={0}` has built their image)",
                self.name
            )));
        }
        Ok(Stores { cluster, rows, register, program: made_by })
    }

    /// Refuses to leave out by mistake what protects a deployment that runs.
    async fn refuse_downgrade(&self, deployment: &Deployment) -> Result<(), Failure> {
        let running: Vec<Wanted> = deployment.balancers().await?.iter().find_map(members_of).unwrap_or_default();
        let has = |words: &[&str]| running.iter().any(|member| member.command.windows(words.len()).any(|found| found == words));
        let ServingArgs { access, tls, .. } = &self.choices.serving;
        if has(&["--auth", "required"]) && access.auth.is_none() {
            return Err(Failure::usage(format!("{} asks for tokens: say --auth required (AUTH=required) again, or --auth off", self.name)));
        }
        if has(&["--tls"]) && !tls.tls && !self.plain {
            return Err(Failure::usage(format!("{} speaks TLS: say --tls (TLS=1) again, or --plain (TLS=0)", self.name)));
        }
        Ok(())
    }

    /// Makes the balancers anew, one after the other, so that of several all but one serve; and removes those that are no longer wanted.
    async fn change(&self, deployment: &Deployment, members: &[Wanted]) -> Result<(), Failure> {
        let is_wanted = |name: &str| members.iter().any(|member| deployment.container_name(&member.alias) == name);
        for container in deployment.containers().await? {
            let name = name_of(&container);
            // One that Ctrl-C left of a recovery must not run beside servers.
            let is_left = is_left_over(&container) || (is_balancer(&container) && !is_wanted(name));
            if let (true, Some(id)) = (is_left, &container.id) {
                println!("removed    {name}");
                deployment.close(id).await?;
            }
        }
        for member in members {
            // Where ports move along, another still has the one that this is to have.
            let port = member.published.map(|(_, port)| port);
            for container in deployment.balancers().await? {
                let has_port = container.ports.iter().flatten().any(|found| found.public_port.is_some() && found.public_port == port);
                if let (true, Some(id)) = (has_port && name_of(&container) != deployment.container_name(&member.alias), &container.id) {
                    deployment.close(id).await?;
                }
            }
            println!("container  {}", deployment.container_name(&member.alias));
            deployment.run(member).await?;
            wait(deployment, member).await?;
        }
        Ok(())
    }

    /// All balancers, the controller first.
    fn members(&self, deployment: &Deployment, image: &str, stores: &Stores, [data, secret]: [String; 2]) -> Result<Vec<Wanted>, Failure> {
        let group = socket_group(&self.socket)?;
        let tls_is_asked = self.choices.serving.tls.tls;
        let words = [
            ("--dir", "/data".to_owned()),
            ("--cluster", stores.cluster.clone()),
            ("--secret-file", "/secret/secret".to_owned()),
            ("--listen", "0.0.0.0:5000".to_owned()),
            ("--register", stores.register.name().to_owned()),
            ("--provisioner", "docker".to_owned()),
            ("--deployment", deployment.name().to_owned()),
            ("--image", image.to_owned()),
            ("--server-memory", self.memory.to_string()),
            ("--server-cpu", self.cpu.to_string()),
            ("--server-rows", stores.rows.name().to_owned()),
        ];
        let words: Vec<String> = words.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect();
        let mut choices = self.choices.clone();
        let ServingArgs { access, tls, .. } = &mut choices.serving;
        (access.auth, access.tokens) = (access.auth.or(Some(AuthArg::Off)), Some(PathBuf::from(SECRET).join("tokens")));
        tls.ca = tls.tls.then(|| PathBuf::from(SECRET).join("tls"));
        let choices: Vec<String> = choices.words("/data".as_ref()).into_iter().map(|word| word.to_string_lossy().into_owned()).collect();
        let environment = environment(tls_is_asked);
        let called = |alias: &String| if tls_is_asked { vec!["--tls-name".to_owned(), alias.clone()] } else { vec![] };
        let member = |alias: String, role: &str, kind: &str, published| Wanted {
            command: [[BALANCER, "--role", role].map(str::to_owned).as_slice(), &words, &choices, &called(&alias)].concat(),
            alias,
            image: image.to_owned(),
            environment: environment.clone(),
            labels: [Some((ROLE.to_owned(), kind.to_owned())), self.chaos.then(|| (CHAOS.to_owned(), "allowed".to_owned()))]
                .into_iter()
                .flatten()
                .collect(),
            volumes: vec![(data.clone(), "/data".to_owned(), true), (secret.clone(), "/secret".to_owned(), true)],
            socket: Some((self.socket.display().to_string(), group)),
            published,
            credentials: vec![],
            restarts: true,
            memory_mib: self.memory,
            cpu_millis: self.cpu,
        };
        let manager = self.shard_manager.then(|| member(SHARD_MANAGER.to_owned(), "controller", SHARD_MANAGER, None));
        let mut all: Vec<Wanted> = manager.into_iter().collect();
        for place in 0..self.balancers {
            let port = self.port.checked_add(place);
            let port = port.ok_or_else(|| Failure::usage(format!("there are no {} ports from {} on", self.balancers, self.port)))?;
            let alias = if place == 0 { BALANCER.to_owned() } else { format!("{BALANCER}{}", place + 1) };
            all.push(member(alias, if self.shard_manager { "router" } else { "both" }, BALANCER, Some((self.bind, port))));
        }
        Ok(members(&all)?)
    }
}

/// Where a deployment keeps what it has.
struct Stores {
    cluster: String,
    rows: StoreArg,
    register: StoreArg,
    /// Which program its databases are.
    program: String,
}

fn entropy() -> Result<Entropy, Failure> {
    Entropy::from_system().map_err(|error| Failure::new(format!("no entropy: {error}")))
}

fn has(container: &ContainerSummary, label: &str) -> bool {
    container.labels.as_ref().is_some_and(|labels| labels.contains_key(label))
}

/// Whether it is a balancer that `twinshard deploy` made, as it was listed.
fn is_balancer(container: &ContainerSummary) -> bool {
    has(container, MEMBERS)
}

fn is_left_over(container: &ContainerSummary) -> bool {
    container.labels.as_ref().is_some_and(|labels| labels.get(ROLE).is_some_and(|role| role == RECOVERY))
}

/// Does it while balancers bring nothing back, which they would as it goes. Ctrl-C ends it.
///
/// # Errors
/// Those of what is done, or if the engine refuses.
pub(super) async fn while_held<T>(deployment: &Deployment, change: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    deployment.hold(entropy()?.below(u64::MAX)).await?;
    let changed = tokio::select! {
        changed = change => changed,
        _ = tokio::signal::ctrl_c() => Err(Failure::new("interrupted: what is done stays, and the same words again do the rest")),
    };
    let let_go = deployment.let_go().await;
    let changed = changed?;
    let_go?;
    Ok(changed)
}

/// Waits until a balancer serves, or has ended.
async fn wait(deployment: &Deployment, member: &Wanted) -> Result<(), Failure> {
    let is_tls = member.command.iter().any(|word| word == "--tls");
    let mut client = match member.published {
        // Whose authority is in a volume, it is not known here.
        Some((ip, port)) if !is_tls => {
            let host = if ip.is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { ip };
            Some(Client::new(&url("http", (host, port)), READY_EVERY * 5)?)
        }
        Some(_) | None => None,
    };
    let name = deployment.container_name(&member.alias);
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        let container = deployment.container_named(&name).await?;
        let is_ready = match &mut client {
            Some(client) => client.send(Method::GET, "/readyz", None).await.is_ok_and(|answer| answer.status.is_success()),
            // Nobody reaches it from here: its health check does.
            None => container.as_ref().is_some_and(Deployment::is_healthy),
        };
        if is_ready {
            return Ok(());
        }
        // One whose database is not there yet ends, and is started again.
        let is_over = container.as_ref().is_none_or(|container| {
            !matches!(container.state, Some(ContainerSummaryStateEnum::RUNNING | ContainerSummaryStateEnum::RESTARTING))
        });
        if is_over || Instant::now() >= deadline {
            let words = match container.and_then(|container| container.id) {
                Some(id) => deployment.last_words(&id).await,
                None => String::new(),
            };
            return Err(Failure::new(format!("{name} did not come up: {words}")));
        }
        sleep(READY_EVERY).await;
    }
}

/// Stops a deployment that runs and brings it up again as it was: `make restart`.
#[derive(Debug, Args)]
pub struct Restart {
    /// The deployment
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
}

impl Restart {
    /// Runs it.
    ///
    /// # Errors
    /// If it does not run, the engine does not answer or refuses, or a balancer does not come up.
    pub async fn run(self) -> Result<(), Failure> {
        let deployment = Deployment::connect(&self.name).await?;
        let members = deployment.balancers().await?.iter().find_map(members_of);
        let members = members.ok_or_else(|| Failure::new(format!("{0} does not run: `make all NAME={0}` brings it up", self.name)))?;
        let change = async {
            println!("containers {} stopped", remove_containers(&deployment).await?);
            for member in &members {
                println!("container  {}", deployment.container_name(&member.alias));
                deployment.run(member).await?;
                wait(&deployment, member).await?;
            }
            Ok(())
        };
        while_held(&deployment, change).await?;
        println!("Twinshard is ready; its servers are being started");
        Ok(())
    }
}

/// The group that may use the engine's socket.
pub(super) fn socket_group(socket: &Path) -> Result<u32, Failure> {
    let found = std::fs::metadata(socket);
    Ok(found.map_err(|error| Failure::new(format!("{} cannot be given to a container: {error}", socket.display())))?.gid())
}

/// What containers have to know besides their flags: how the health check asks, and what is logged, which is told on.
fn environment(is_tls: bool) -> Vec<(String, String)> {
    let tls = [("TWINSHARD_URL", "https://localhost:5000".to_owned()), ("TWINSHARD_CA", format!("{SECRET}/tls/ca.pem"))];
    let logs = [LOG, LOG_FORMAT].into_iter().filter_map(|name| Some((name, std::env::var(name).ok()?)));
    tls.into_iter().filter(|_| is_tls).chain(logs).map(|(name, value)| (name.to_owned(), value)).collect()
}

fn url(scheme: &str, (ip, port): (IpAddr, u16)) -> String {
    format!("{scheme}://{}", std::net::SocketAddr::from((ip, port)))
}

/// Where servers keep their rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StoreArg {
    /// A file in the server's volume.
    Redb,
    /// A database in a container beside it.
    Mysql,
}

impl StoreArg {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Redb => "redb",
            Self::Mysql => "mysql",
        }
    }
}

/// What a balancer that starts servers as containers is told.
#[derive(Clone, Debug, Args)]
pub struct DockerArgs {
    /// The deployment whose containers the servers are
    #[arg(long, default_value = DEFAULT_NAME)]
    pub deployment: String,
    /// The image of the servers
    #[arg(long)]
    pub image: Option<String>,
    /// The most memory of a server's container, in MiB
    #[arg(long, default_value_t = 512)]
    pub server_memory: u32,
    /// The most processor time of a server's container, in thousandths of a core
    #[arg(long, default_value_t = 1_000)]
    pub server_cpu: u32,
    /// Where servers keep their rows
    #[arg(long, value_enum, default_value_t = StoreArg::Redb)]
    pub server_rows: StoreArg,
}

impl DockerArgs {
    /// The provisioner.
    ///
    /// # Errors
    /// If the engine does not answer.
    pub async fn provisioner(
        &self,
        cluster: twinshard_core::id::ClusterId,
        secret: Secret,
        serving: &ServingArgs,
        has_register: bool,
    ) -> Result<crate::provision::docker::DockerProvisioner, DockerError> {
        let deployment = Deployment::connect(&self.deployment).await?;
        let settings = crate::provision::docker::DockerSettings {
            image: self.image.clone().unwrap_or_else(|| deployment.image()),
            cluster,
            secret_volume: deployment.volume_name("secret"),
            serving: serving.words("/data".as_ref()),
            environment: environment(serving.tls.tls),
            database: (self.server_rows == StoreArg::Mysql).then(|| (deployment.database_image(), secret)),
            has_register,
            memory_mib: self.server_memory,
            cpu_millis: self.server_cpu,
        };
        Ok(crate::provision::docker::DockerProvisioner::new(deployment, settings))
    }
}
