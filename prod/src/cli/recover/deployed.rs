//! Recovery of a deployment on Docker: a container that sees the volumes of all its servers does it.

use super::{found_in, rebuilt, recover_file, wrong_with};
use crate::{
    cli::{
        Failure,
        deploy::{DockerArgs, RECOVERY, REGISTER, StoreArg, socket_group},
        register::RegisterArg,
        serving::ServingArgs,
    },
    docker::{CLUSTER, Deployment, ROLE, SERVER, Wanted, name_of},
    secret::Secret,
};
use clap::Args;
use std::path::{Path, PathBuf};
use twinshard_core::id::ClusterId;

/// Where it sees the volumes of the servers.
const SERVERS: &str = "/servers";

/// What the container is told.
#[derive(Debug, Args)]
pub(super) struct Inside {
    /// The cluster
    #[arg(long = "inside-cluster", hide = true, value_parser = crate::cli::nodes::cluster)]
    cluster: Option<ClusterId>,
    /// What keeps its register
    #[arg(long = "inside-register", hide = true, value_enum, default_value_t)]
    register: RegisterArg,
}

impl Inside {
    pub(super) const fn cluster(&self) -> Option<ClusterId> {
        self.cluster
    }

    pub(super) async fn run(&self, name: &str, cluster: ClusterId, dry_run: bool) -> Result<(), Failure> {
        match self.register {
            RegisterArg::Redb => recover_file(Path::new("/data"), &found_in(Path::new(SERVERS), cluster)?, cluster, dry_run),
            #[cfg(feature = "mysql")]
            RegisterArg::Mysql => recover_database(name, cluster, dry_run).await,
        }
    }
}

/// Runs the container.
///
/// # Errors
/// If the deployment is not stopped, is none, or nothing could be recovered.
pub(super) async fn run(name: &str, dry_run: bool) -> Result<(), Failure> {
    let deployment = Deployment::connect(name).await?;
    let data = deployment.volume_name("balancer");
    let Some(cluster) = deployment.volume_label(&data, CLUSTER).await? else {
        return Err(Failure::new(format!("there is no deployment {name} whose data is kept: the volume {data} is not there")));
    };
    let servers = deployment.volumes_with(SERVER).await?;
    let containers = deployment.containers().await?;
    let running: Vec<&str> = containers.iter().filter(|found| is_node(found)).map(name_of).collect();
    if !running.is_empty() {
        return Err(Failure::new(format!("{} runs: stop the deployment with `make down NAME={name}` first", running.join(", "))));
    }
    let register = deployment.volume_label(&data, REGISTER).await?.unwrap_or_else(|| RegisterArg::Redb.name().to_owned());
    deployment.ensure_network().await?;
    let image = deployment.image();
    let words = ["recover", "--deployment", name, "--inside-cluster", &cluster, "--inside-register", &register];
    let prefix = deployment.volume_name("");
    let mount = |volume: &String| (volume.clone(), format!("{SERVERS}/{}", volume.strip_prefix(&prefix).unwrap_or(volume)), true);
    let volumes = [(data, "/data".to_owned(), true), (deployment.volume_name("secret"), "/secret".to_owned(), true)];
    // To bring up the register's database; a file needs nobody's help.
    let socket = PathBuf::from("/var/run/docker.sock");
    let socket = if register == RegisterArg::Redb.name() { None } else { Some((socket.display().to_string(), socket_group(&socket)?)) };
    let wanted = Wanted {
        alias: RECOVERY.to_owned(),
        image,
        command: words.into_iter().chain(dry_run.then_some("--dry-run")).map(str::to_owned).collect(),
        environment: vec![],
        labels: vec![(ROLE.to_owned(), RECOVERY.to_owned())],
        volumes: volumes.into_iter().chain(servers.iter().map(mount)).collect(),
        socket,
        published: None,
        credentials: vec![],
        restarts: false,
        memory_mib: 512,
        cpu_millis: 1_000,
    };
    deployment.run(&wanted).await?;
    let (said, code) = deployment.finish(RECOVERY).await?;
    if code != 0 {
        return Err(Failure::new(said.trim().trim_start_matches("twinshard: ").to_owned()));
    }
    println!("{}", said.trim());
    if !dry_run {
        println!("`make all NAME={name}` goes on.");
    }
    Ok(())
}

fn is_node(container: &bollard::models::ContainerSummary) -> bool {
    let labels = container.labels.as_ref();
    let is = |label: &str| labels.is_some_and(|labels| labels.contains_key(label));
    (is(SERVER) || is(crate::docker::MEMBERS)) && container.state != Some(bollard::models::ContainerSummaryStateEnum::EXITED)
}

/// A register in the deployment's own database.
#[cfg(feature = "mysql")]
async fn recover_database(name: &str, cluster: ClusterId, dry_run: bool) -> Result<(), Failure> {
    use crate::{
        cli::register::{on_thread, remember_made},
        register::{Register as _, mysql::MysqlRegister},
    };
    let args = DockerArgs { deployment: name.to_owned(), image: None, server_memory: 512, server_cpu: 1_000, server_rows: StoreArg::Mysql };
    let secret = Secret::load(Path::new("/secret/secret"))?;
    let provisioner = args.provisioner(cluster, secret, &ServingArgs::default(), true).await?;
    provisioner.bring_register_up().await?;
    let settings = provisioner.register_settings().map_err(Failure::new)?;
    let mut settings = settings.ok_or_else(|| Failure::new("the deployment has no database for its register"))?;
    settings.patience = std::time::Duration::from_secs(30);
    let look = settings.clone();
    let found = found_in(Path::new(SERVERS), cluster)?;
    let read = on_thread(move || MysqlRegister::open(&look, cluster).and_then(|mut register| register.read())).await?;
    println!("The register: {}", wrong_with(&"the register", read.map(|(version, _)| version), &found)?);
    let Some(rebuilt) = rebuilt(&found, dry_run)? else { return Ok(()) };
    let restored = on_thread(move || {
        let aside = MysqlRegister::set_aside(&settings)?;
        MysqlRegister::restore(&settings, rebuilt.version, &rebuilt.map).map(|()| aside)
    });
    if let Some(aside) = restored.await?? {
        println!("It is kept as the table {aside}");
    }
    remember_made(Path::new("/data"))?;
    println!("The register is made anew.");
    Ok(())
}
