//! `twinshard deploy`: the production system on a Docker engine. It can be repeated.

use super::{Failure, LOG, LOG_FORMAT, access::AuthArg, client::Client, nodes::Choices, serving::ServingArgs, topology::default_cluster};
use crate::secret::Secret;
use crate::{
    docker::{CHAOS, CLUSTER, DEFAULT_NAME, Deployment, DockerError, ROLE, Wanted},
    entropy::Entropy,
    provision::docker::members,
};
use clap::{Args, ValueEnum};
use http::Method;
use std::{
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// The label that says where a deployment's rows are.
const ROWS: &str = "twinshard.rows";
/// The label that says where its register is.
pub(super) const REGISTER: &str = "twinshard.register";
/// The label, of an image and of a deployment, that says which program its databases are.
const DATABASE: &str = "twinshard.database";
/// What other containers call the first balancer.
const BALANCER: &str = "balancer";
/// What they call the controller where it has a container of its own.
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
    /// Runs it.
    ///
    /// # Errors
    /// If the engine does not answer or refuses, or the balancer does not come up.
    pub async fn run(self) -> Result<(), Failure> {
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
        self.choices.check(&[])?;
        let deployment = Deployment::connect(&self.name).await?;
        let image = self.image.clone().unwrap_or_else(|| deployment.image());
        if deployment.image_labels(&image).await?.is_none() {
            return Err(Failure::new(format!("there is no image {image}: `make image NAME={}` builds it", self.name)));
        }
        println!("network    {}", deployment.name());
        deployment.ensure_network().await?;
        let (data, secret) = (deployment.volume_name(BALANCER), deployment.volume_name("secret"));
        println!("volumes    {data} {secret}");
        let entropy = Entropy::from_system().map_err(|error| Failure::new(format!("no entropy: {error}")))?;
        let (drawn, number) = (entropy.bytes(), entropy.below(u64::MAX));
        let drawn: String = drawn.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        // A volume that is there keeps its labels, and with them the cluster.
        let database_image = deployment.database_image();
        let database_labels = deployment.image_labels(&database_image).await?;
        let rows = self.rows.unwrap_or(if database_labels.is_some() { StoreArg::Mysql } else { StoreArg::Redb });
        let program = database_labels.as_ref().and_then(|labels| labels.get(DATABASE)).cloned().unwrap_or_default();
        let register = if rows == StoreArg::Mysql { "mysql" } else { "redb" };
        let labels = [(CLUSTER, drawn), (ROWS, rows.name().to_owned()), (REGISTER, register.to_owned()), (DATABASE, program.clone())];
        let labels = deployment.ensure_volume(&data, &labels).await?;
        let label = |wanted| labels.iter().find(|(label, _)| label == wanted).map(|(_, value)| value.clone());
        let cluster = label(CLUSTER)
            .ok_or_else(|| Failure::new(format!("the volume {data} is not one that this program made: it names no cluster")))?;
        let rows = if label(ROWS).as_deref() == Some(StoreArg::Mysql.name()) { StoreArg::Mysql } else { StoreArg::Redb };
        if self.rows.is_some_and(|wanted| wanted != rows) {
            // Every server would find its rows gone.
            return Err(Failure::new(format!(
                "{} keeps its rows in {}, which cannot be changed: leave --rows out, or deploy under another name",
                self.name,
                rows.name()
            )));
        }
        match rows {
            StoreArg::Mysql if database_labels.is_none() => {
                return Err(Failure::new(format!("there is no image {database_image}: `make db-image NAME={}` builds it", self.name)));
            }
            StoreArg::Mysql if label(DATABASE).is_some_and(|made_by| made_by != program) => {
                // One program does not read the files of another.
                let made_by = label(DATABASE).unwrap_or_default();
                return Err(Failure::new(format!(
                    "the databases of {0} were made by {made_by}, and {database_image} is {program}: build that of {made_by} again with \
                     `make db-image NAME={0} DB_IMAGE={made_by}`",
                    self.name
                )));
            }
            StoreArg::Mysql => println!("rows       in a database beside each server ({program})"),
            StoreArg::Redb => println!("rows       in a file of each server"),
        }
        let register = label(REGISTER).unwrap_or_else(|| "redb".to_owned());
        match register.as_str() {
            "mysql" => println!("register   in a database of its own"),
            _ if self.balancers > 1 || self.shard_manager => {
                return Err(Failure::new(format!(
                    "{} keeps its register in a file of its balancer, which is for one: several balancers take a deployment that was made \
                     with its rows in databases (--rows mysql)",
                    self.name
                )));
            }
            _ => println!("register   in a file of the balancer"),
        }
        deployment.ensure_volume(&secret, &[]).await?;
        let members = self.members(&deployment, &image, &cluster, rows, &register, [data, secret])?;
        // Balancers bring each other back; not while they are changed.
        deployment.hold(number).await?;
        let changed = self.change(&deployment, &members).await;
        deployment.let_go().await?;
        changed?;
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

    /// Makes the balancers anew, one after the other, so that of several all but one serve; and removes those that are no longer wanted.
    async fn change(&self, deployment: &Deployment, members: &[Wanted]) -> Result<(), Failure> {
        for member in members {
            println!("container  {}", deployment.container_name(&member.alias));
            deployment.run(member).await?;
            self.wait(deployment, member).await?;
        }
        let names: Vec<String> = members.iter().map(|member| format!("/{}", deployment.container_name(&member.alias))).collect();
        for container in deployment.balancers().await? {
            let is_wanted = container.names.iter().flatten().any(|name| names.contains(name));
            if let (false, Some(id)) = (is_wanted, &container.id) {
                println!("removed    {}", container.names.iter().flatten().map(|name| name.trim_start_matches('/')).collect::<String>());
                deployment.close(id).await?;
            }
        }
        Ok(())
    }

    /// All balancers, the controller first.
    fn members(
        &self,
        deployment: &Deployment,
        image: &str,
        cluster: &str,
        rows: StoreArg,
        register: &str,
        [data, secret]: [String; 2],
    ) -> Result<Vec<Wanted>, Failure> {
        let group = socket_group(&self.socket)?;
        let tls_is_asked = self.choices.serving.tls.tls;
        let words = [
            ("--dir", "/data".to_owned()),
            ("--cluster", cluster.to_owned()),
            ("--secret-file", "/secret/secret".to_owned()),
            ("--listen", "0.0.0.0:5000".to_owned()),
            ("--register", register.to_owned()),
            ("--provisioner", "docker".to_owned()),
            ("--deployment", deployment.name().to_owned()),
            ("--image", image.to_owned()),
            ("--server-memory", self.memory.to_string()),
            ("--server-cpu", self.cpu.to_string()),
            ("--server-rows", rows.name().to_owned()),
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

    /// Waits until a balancer serves, or has ended.
    async fn wait(&self, deployment: &Deployment, member: &Wanted) -> Result<(), Failure> {
        let mut client = match member.published {
            // Whose authority is in a volume, it is not known here.
            Some((ip, port)) if !self.choices.serving.tls.tls => {
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
            let is_over = container.as_ref().is_none_or(|container| !Deployment::is_running(container));
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
    const fn name(self) -> &'static str {
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
