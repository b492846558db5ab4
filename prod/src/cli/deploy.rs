//! `twinshard deploy` and `twinshard undeploy`: the production system on a Docker engine, and away with it. Both can be repeated.

use super::{
    Failure,
    access::{AccessArgs, AuthArg},
    client::Client,
    nodes::{OnConflictArg, PolicyArg},
};
use crate::secret::Secret;
use crate::{
    docker::{CLUSTER, DEFAULT_NAME, Deployment, DockerError, Wanted},
    entropy::Entropy,
};
use clap::{Args, ValueEnum};
use http::Method;
use std::{
    io::{self, BufRead, IsTerminal, Write},
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// The label that says where a deployment's rows are.
const ROWS: &str = "twinshard.rows";
/// The label of what is no server's.
const ROLE: &str = "twinshard.role";
/// What other containers call the balancer.
const BALANCER: &str = "balancer";
/// How long the balancer may take until it serves. It adopts what runs, and needs no server for that.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// How often it is asked.
const READY_EVERY: Duration = Duration::from_millis(200);

/// Brings a deployment up on this machine's Docker engine: network, volumes, and the balancer, which starts servers as they are asked for.
#[derive(Debug, Args)]
#[command(
    after_help = "Usually `make all` runs it, after building the image. Repeated, it makes the balancer anew and adopts the servers that run.
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
    /// The port on the host
    #[arg(long, default_value_t = 5000)]
    port: u16,
    /// The host's address; beyond loopback, tokens are required
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    bind: IpAddr,
    /// Whether clients must show a token
    #[arg(long, value_enum, default_value_t = AuthArg::Off)]
    auth: AuthArg,
    /// How reads are spread over replicas
    #[arg(long, value_enum, default_value_t = PolicyArg::Ring)]
    policy: PolicyArg,
    /// What writes do with a key that exists, where neither the request nor its /init says
    #[arg(long, value_enum, default_value_t = OnConflictArg::Replace)]
    on_conflict: OnConflictArg,
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
        if !self.bind.is_loopback() && self.auth == AuthArg::Off {
            return Err(Failure::usage(format!("{} is not a loopback address: to publish there say --auth required", self.bind)));
        }
        let deployment = Deployment::connect(&self.name).await?;
        let image = self.image.clone().unwrap_or_else(|| deployment.image());
        if !deployment.has_image(&image).await? {
            return Err(Failure::new(format!("there is no image {image}: `make image NAME={}` builds it", self.name)));
        }
        println!("network    {}", deployment.name());
        deployment.ensure_network().await?;
        let (data, secret) = (deployment.volume_name(BALANCER), deployment.volume_name("secret"));
        println!("volumes    {data} {secret}");
        let drawn = Entropy::from_system().map_err(|error| Failure::new(format!("no entropy: {error}")))?.bytes();
        let drawn: String = drawn.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        // A volume that is there keeps its labels, and with them the cluster.
        let database_image = deployment.database_image();
        let has_databases = deployment.has_image(&database_image).await?;
        let rows = self.rows.unwrap_or(if has_databases { StoreArg::Mysql } else { StoreArg::Redb });
        let labels = deployment.ensure_volume(&data, &[(CLUSTER, drawn), (ROWS, rows.name().to_owned())]).await?;
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
            StoreArg::Mysql if !has_databases => {
                return Err(Failure::new(format!("there is no image {database_image}: `make db-image NAME={}` builds it", self.name)));
            }
            StoreArg::Mysql => println!("rows       in a database beside each server ({database_image})"),
            StoreArg::Redb => println!("rows       in a file of each server"),
        }
        deployment.ensure_volume(&secret, &[]).await?;
        println!("container  {}", deployment.container_name(BALANCER));
        deployment.run(&self.balancer(&deployment, image, cluster, rows, [data, secret])?).await?;
        self.wait(&deployment).await?;
        let url = format!("http://{}", std::net::SocketAddr::from((self.bind, self.port)));
        println!("Twinshard is ready on {url}");
        if self.auth == AuthArg::Required {
            let name = deployment.container_name(BALANCER);
            println!("Clients must show a token:  docker cp {name}:/secret/tokens/admin.token -  | tar -xO");
        }
        println!("Set it up with the course's default cluster:");
        println!("  curl -X POST {url}/init -d '{}'", super::topology::default_cluster());
        Ok(())
    }

    fn balancer(
        &self,
        deployment: &Deployment,
        image: String,
        cluster: String,
        rows: StoreArg,
        [data, secret]: [String; 2],
    ) -> Result<Wanted, Failure> {
        let group = std::fs::metadata(&self.socket)
            .map_err(|error| Failure::new(format!("{} cannot be given to the balancer: {error}", self.socket.display())))?
            .gid();
        let words = [
            ("--dir", "/data".to_owned()),
            ("--cluster", cluster),
            ("--secret-file", "/secret/secret".to_owned()),
            ("--listen", "0.0.0.0:5000".to_owned()),
            ("--policy", self.policy.name().to_owned()),
            ("--on-conflict", self.on_conflict.name().to_owned()),
            ("--provisioner", "docker".to_owned()),
            ("--deployment", deployment.name().to_owned()),
            ("--image", image.clone()),
            ("--server-memory", self.memory.to_string()),
            ("--server-cpu", self.cpu.to_string()),
            ("--server-rows", rows.name().to_owned()),
        ];
        let words = words.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
        let access = AccessArgs { auth: Some(self.auth), tokens: Some("/secret/tokens".into()) };
        let access = access.words("/data".as_ref()).into_iter().map(|word| word.to_string_lossy().into_owned());
        Ok(Wanted {
            alias: BALANCER.to_owned(),
            image,
            command: [BALANCER.to_owned()].into_iter().chain(words).chain(access).collect(),
            labels: vec![(ROLE, BALANCER.to_owned())],
            volumes: vec![(data, "/data", true), (secret, "/secret", true)],
            socket: Some((self.socket.display().to_string(), group)),
            published: Some((self.bind, self.port)),
            credentials: vec![],
            restarts: true,
            memory_mib: self.memory,
            cpu_millis: self.cpu,
        })
    }

    /// Waits until the balancer serves, or has ended.
    async fn wait(&self, deployment: &Deployment) -> Result<(), Failure> {
        let host = if self.bind.is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { self.bind };
        let mut client = Client::new(&format!("http://{}", std::net::SocketAddr::from((host, self.port))), READY_EVERY * 5)?;
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            if client.send(Method::GET, "/readyz", None).await.is_ok_and(|answer| answer.status.is_success()) {
                return Ok(());
            }
            let container = deployment.container_with(ROLE, BALANCER).await?;
            let is_over = container.as_ref().is_none_or(|container| !Deployment::is_running(container));
            if is_over || Instant::now() >= deadline {
                let words = match container.and_then(|container| container.id) {
                    Some(id) => deployment.last_words(&id).await,
                    None => String::new(),
                };
                return Err(Failure::new(format!("the balancer did not come up: {words}")));
            }
            sleep(READY_EVERY).await;
        }
    }
}

/// Takes a deployment away: its containers and network; without --keep-data its volumes and images, too. Nothing else is touched.
#[derive(Debug, Args)]
#[command(after_help = "`make down` keeps the data, `make clean` does not. What goes is told first; at a terminal it is asked.")]
pub struct Undeploy {
    /// The deployment
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
    /// Keep the volumes and the image: `twinshard deploy` finds the cluster again
    #[arg(long)]
    keep_data: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

impl Undeploy {
    /// Runs it.
    ///
    /// # Errors
    /// If the engine does not answer or refuses, or it was not confirmed.
    pub async fn run(self) -> Result<(), Failure> {
        let deployment = Deployment::connect(&self.name).await?;
        let volumes = if self.keep_data { Vec::new() } else { deployment.volumes().await? };
        if !volumes.is_empty() {
            println!("These volumes of {} go, with all rows in them:", self.name);
            for volume in &volumes {
                println!("  {volume}");
            }
            if !self.yes && io::stdin().is_terminal() && !confirmed()? {
                return Err(Failure::new("nothing was removed"));
            }
        }
        // The balancer first: it would start again what is removed, and may just be starting something.
        let mut container_count = 0;
        if let Some(id) = deployment.container_with(ROLE, BALANCER).await?.and_then(|container| container.id) {
            deployment.close(&id).await?;
            container_count += 1;
        }
        for id in deployment.containers().await?.into_iter().filter_map(|container| container.id) {
            deployment.close(&id).await?;
            container_count += 1;
        }
        println!("containers {container_count} removed");
        println!("networks   {} removed", deployment.remove_network().await?);
        if self.keep_data {
            println!("The data is kept. `make all` goes on where it was.");
            return Ok(());
        }
        for volume in &volumes {
            deployment.remove_volume(volume).await?;
        }
        println!("volumes    {} removed", volumes.len());
        println!("images     {} removed", deployment.remove_images().await?);
        Ok(())
    }
}

fn confirmed() -> Result<bool, Failure> {
    print!("Remove them? [y/N] ");
    io::stdout().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
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
        access: &AccessArgs,
    ) -> Result<crate::provision::docker::DockerProvisioner, DockerError> {
        let deployment = Deployment::connect(&self.deployment).await?;
        let settings = crate::provision::docker::DockerSettings {
            image: self.image.clone().unwrap_or_else(|| deployment.image()),
            cluster,
            secret_volume: deployment.volume_name("secret"),
            access: access.words("/data".as_ref()),
            database: (self.server_rows == StoreArg::Mysql).then(|| (deployment.database_image(), secret)),
            memory_mib: self.server_memory,
            cpu_millis: self.server_cpu,
        };
        Ok(crate::provision::docker::DockerProvisioner::new(deployment, settings))
    }
}
