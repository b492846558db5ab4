//! Servers as containers, each with a volume for its log and rows. Containers are found by their labels, so that a balancer that is made anew
//! adopts what runs; that one answers for the server it is taken for, the handshake of the peer protocol proves.

use super::Provisioner;
use crate::{
    docker::{Deployment, DockerError, SERVER, Wanted},
    secret::Secret,
};
use bollard::models::ContainerSummaryStateEnum;
use std::{ffi::OsString, time::Duration};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use twinshard_core::{
    id::{ClusterId, ServerId},
    map::Address,
};

/// The port of a server's HTTP, in its container.
const HTTP_PORT: u16 = 5000;
/// The port of a server for other nodes, in its container.
const PEER_PORT: u16 = 5001;
/// How long a server may take to open its store and listen. Opening replays its log. A guess.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// How often it is looked whether a server listens.
const READY_EVERY: Duration = Duration::from_millis(50);
/// The label with the id of the server whose database it is.
const DATABASE_OF: &str = "twinshard.database-of";
/// The user that a server is in its database.
const DATABASE_USER: &str = "twinshard";
/// How often it is looked whether the databases run.
const DATABASES_EVERY: Duration = Duration::from_secs(1);
/// How long one look may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

fn database_alias(name: &str) -> String {
    format!("{name}-db")
}

/// What the servers of a deployment have in common.
#[derive(Clone, Debug)]
pub struct DockerSettings {
    /// The image.
    pub image: String,
    /// Which cluster.
    pub cluster: ClusterId,
    /// The volume with the secret, mounted at /secret.
    pub secret_volume: String,
    /// The flags that say who may come in.
    pub access: Vec<OsString>,
    /// The image of databases, where every server has one beside it, and what passwords are made of.
    pub database: Option<(String, Secret)>,
    /// The most memory of a server, in MiB.
    pub memory_mib: u32,
    /// The most processor time of a server, in thousandths of a core.
    pub cpu_millis: u32,
}

/// Starts and stops servers as containers.
#[derive(Clone, Debug)]
pub struct DockerProvisioner {
    deployment: Deployment,
    settings: DockerSettings,
}

impl DockerProvisioner {
    /// A provisioner of a deployment whose network is there.
    #[must_use]
    pub const fn new(deployment: Deployment, settings: DockerSettings) -> Self {
        Self { deployment, settings }
    }

    fn volume(&self, server: ServerId, name: &str) -> String {
        self.deployment.volume_name(&format!("{name}-{server}"))
    }

    fn wanted(&self, server: ServerId, name: &str, number: u64) -> Wanted {
        let settings = &self.settings;
        let words = [
            ("--dir", "/data".to_owned()),
            ("--id", server.0.to_string()),
            ("--name", name.to_owned()),
            ("--number", number.to_string()),
            ("--cluster", settings.cluster.to_string()),
            ("--secret-file", "/secret/secret".to_owned()),
            ("--listen", format!("0.0.0.0:{HTTP_PORT}")),
            ("--peer-listen", format!("0.0.0.0:{PEER_PORT}")),
        ];
        let database = settings.database.iter().flat_map(|_| {
            [
                ("--rows", "mysql".to_owned()),
                ("--database-url", format!("mysql://{DATABASE_USER}@{}:3306/", database_alias(name))),
                ("--database-password-file", "/credentials/password".to_owned()),
            ]
        });
        let words = words.into_iter().chain(database).flat_map(|(flag, value)| [flag.to_owned(), value]);
        let access = settings.access.iter().map(|word| word.to_string_lossy().into_owned());
        Wanted {
            alias: name.to_owned(),
            image: settings.image.clone(),
            command: ["server".to_owned()].into_iter().chain(words).chain(access).collect(),
            labels: vec![(SERVER, server.0.to_string())],
            volumes: [(self.volume(server, name), "/data", true), (settings.secret_volume.clone(), "/secret", false)]
                .into_iter()
                .chain(settings.database.iter().map(|_| (self.credentials(server, name), "/credentials", false)))
                .collect(),
            socket: None,
            published: None,
            credentials: vec![],
            restarts: false,
            memory_mib: settings.memory_mib,
            cpu_millis: settings.cpu_millis,
        }
    }

    /// The volume with the password of a server's database.
    fn credentials(&self, server: ServerId, name: &str) -> String {
        self.deployment.volume_name(&format!("{name}-{server}-credentials"))
    }

    /// Sees that the database of a server runs, where servers have one.
    async fn bring_database_up(&self, server: ServerId, name: &str) -> Result<(), DockerError> {
        let Some((image, secret)) = &self.settings.database else { return Ok(()) };
        if let Some(container) = self.deployment.container_with(DATABASE_OF, &server.0.to_string()).await? {
            if Deployment::is_running(&container) {
                return Ok(());
            }
            if let Some(id) = container.id {
                self.deployment.remove(&id).await?;
            }
        }
        let labels = [(DATABASE_OF, server.0.to_string())];
        let (data, credentials) = (self.deployment.volume_name(&format!("{name}-{server}-database")), self.credentials(server, name));
        self.deployment.ensure_volume(&data, &labels).await?;
        self.deployment.ensure_volume(&credentials, &labels).await?;
        // The same in every life of it, and another for every server.
        let password: String =
            secret.prove(&[b"twinshard database", &server.0.to_le_bytes()]).iter().map(|byte| format!("{byte:02x}")).collect();
        let users = format!(
            "CREATE USER IF NOT EXISTS '{DATABASE_USER}'@'%' IDENTIFIED BY '{password}';\nGRANT ALL PRIVILEGES ON *.* TO '{DATABASE_USER}'@'%';\n"
        );
        let wanted = Wanted {
            alias: database_alias(name),
            image: image.clone(),
            command: vec![],
            labels: labels.to_vec(),
            volumes: vec![(data, "/data", true), (credentials, "/credentials", true)],
            socket: None,
            published: None,
            credentials: vec![("password", password), ("init.sql", users)],
            restarts: true,
            memory_mib: self.settings.memory_mib,
            cpu_millis: self.settings.cpu_millis,
        };
        self.deployment.run(&wanted).await
    }

    /// Brings databases back that have ended, are paused or cut off, for ever: the engine undoes nothing that was done through it.
    pub async fn keep_databases(&self) {
        loop {
            sleep(DATABASES_EVERY).await;
            if self.settings.database.is_none() {
                continue;
            }
            let containers = match self.deployment.containers().await {
                Ok(containers) => containers,
                Err(error) => {
                    tracing::warn!(%error, "databases cannot be looked after");
                    continue;
                }
            };
            for container in containers {
                let is_database = container.labels.as_ref().is_some_and(|labels| labels.contains_key(DATABASE_OF));
                let (true, Some(id)) = (is_database, &container.id) else { continue };
                let (what, done) = match container.state {
                    Some(ContainerSummaryStateEnum::EXITED) => ("has ended", self.deployment.start(id).await),
                    Some(ContainerSummaryStateEnum::PAUSED) => ("is paused", self.deployment.unpause(id).await),
                    Some(ContainerSummaryStateEnum::RUNNING) if !self.deployment.is_connected(&container) => {
                        ("is out of the network", self.deployment.connect_again(&container).await)
                    }
                    Some(_) | None => continue,
                };
                match done {
                    Ok(()) => tracing::warn!(names = ?container.names, "a database that {what} was brought back"),
                    Err(error) => tracing::warn!(names = ?container.names, %error, "a database that {what} could not be brought back"),
                }
            }
        }
    }

    /// Whether a container was started; one that runs is left as it is.
    async fn bring_up(&self, server: ServerId, name: &str, number: u64, replace: bool) -> Result<bool, DockerError> {
        if let Some(container) = self.deployment.container_with(SERVER, &server.0.to_string()).await?
            && let Some(id) = &container.id
        {
            if !replace && Deployment::is_running(&container) {
                return Ok(false);
            }
            self.deployment.remove(id).await?;
        }
        self.deployment.ensure_volume(&self.volume(server, name), &[(SERVER, server.0.to_string())]).await?;
        self.bring_database_up(server, name).await?;
        self.deployment.run(&self.wanted(server, name, number)).await?;
        Ok(true)
    }

    /// Waits until the server listens for other nodes, which it does once its storage is open.
    async fn ready(&self, server: ServerId, name: &str) -> Result<(), String> {
        let deadline = Instant::now() + READY_TIMEOUT;
        let mut look = 0_u32;
        loop {
            if matches!(timeout(CONNECT_TIMEOUT, TcpStream::connect((name, PEER_PORT))).await, Ok(Ok(_))) {
                return Ok(());
            }
            look += 1;
            if look.is_multiple_of(10)
                && let Ok(Some(container)) = self.deployment.container_with(SERVER, &server.0.to_string()).await
                && !Deployment::is_running(&container)
            {
                let words = self.deployment.last_words(container.id.as_deref().unwrap_or_default()).await;
                return Err(format!("{name} ended before it was ready: {words}"));
            }
            if Instant::now() >= deadline {
                return Err(format!("{name} was not ready within {} s", READY_TIMEOUT.as_secs()));
            }
            sleep(READY_EVERY).await;
        }
    }
}

impl Provisioner for DockerProvisioner {
    async fn start(&self, server: ServerId, name: &str, number: u64, replace: bool) -> Result<Address, String> {
        // One that runs already may not be reachable: whether it answers, the balancer finds out by its heartbeats.
        if self.bring_up(server, name, number, replace).await.map_err(|error| error.to_string())? {
            self.ready(server, name).await?;
        }
        Ok(Address { http: format!("{name}:{HTTP_PORT}").into(), peer: format!("{name}:{PEER_PORT}").into() })
    }

    async fn stop(&self, server: ServerId, name: &str) -> Result<(), String> {
        let found = self.deployment.container_with(SERVER, &server.0.to_string()).await.map_err(|error| error.to_string())?;
        let database = self.deployment.container_with(DATABASE_OF, &server.0.to_string()).await.map_err(|error| error.to_string())?;
        for id in [found, database].into_iter().flatten().filter_map(|container| container.id) {
            self.deployment.close(&id).await.map_err(|error| format!("{name}: {error}"))?;
        }
        Ok(())
    }
}
