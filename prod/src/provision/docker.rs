//! Servers as containers, each with a volume for its log and rows. Containers are found by their labels, so that a balancer that is made anew
//! adopts what runs; that one answers for the server it is taken for, the handshake of the peer protocol proves.

mod keeper;

pub use keeper::{BALANCER, DATABASE_OF, REGISTER, members, members_of};

use super::Provisioner;
use crate::{
    docker::{Deployment, DockerError, ROLE, SERVER, Wanted},
    secret::Secret,
};
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
/// The user that a server is in its database.
const DATABASE_USER: &str = "twinshard";
/// How long one look may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

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
    /// The flags that say how servers serve.
    pub serving: Vec<OsString>,
    /// What their health checks have to know.
    pub environment: Vec<(String, String)>,
    /// The image of databases, where every server has one beside it, and what passwords are made of.
    pub database: Option<(String, Secret)>,
    /// The register is in a database of its own, too.
    pub has_register: bool,
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
        let serving = settings.serving.iter().map(|word| word.to_string_lossy().into_owned());
        Wanted {
            alias: name.to_owned(),
            image: settings.image.clone(),
            // In one word: it may begin with a dash.
            command: ["server".to_owned(), format!("--name={name}")].into_iter().chain(words).chain(serving).collect(),
            environment: settings.environment.clone(),
            labels: vec![(SERVER.to_owned(), server.0.to_string())],
            volumes: [(self.volume(server, name), "/data", true), (settings.secret_volume.clone(), "/secret", false)]
                .into_iter()
                .chain(settings.database.iter().map(|_| (self.credentials(server, name), "/credentials", false)))
                .map(|(volume, target, is_written)| (volume, target.to_owned(), is_written))
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
        let Some((_, secret)) = &self.settings.database else { return Ok(()) };
        let volume = self.deployment.volume_name(&format!("{name}-{server}-database"));
        // The same in every life of it, and another for every server.
        let password = hex(&secret.prove(&[b"twinshard database", &server.0.to_le_bytes()]));
        let label = (DATABASE_OF.to_owned(), server.0.to_string());
        self.bring_up_one(&database_alias(name), label, volume, self.credentials(server, name), password).await
    }

    /// Sees that the database of the register runs, if the deployment has one. Several may see to it at once.
    ///
    /// # Errors
    /// If the engine refuses.
    pub async fn bring_register_up(&self) -> Result<(), DockerError> {
        let Some(password) = self.register_password() else { return Ok(()) };
        let [data, credentials] = [REGISTER.to_owned(), format!("{REGISTER}-credentials")].map(|what| self.deployment.volume_name(&what));
        self.bring_up_one(REGISTER, (ROLE.to_owned(), REGISTER.to_owned()), data, credentials, password).await
    }

    /// The password of [`DATABASE_USER`] in the register's database, if there is one.
    fn register_password(&self) -> Option<String> {
        let (_, secret) = self.settings.database.as_ref().filter(|_| self.settings.has_register)?;
        Some(hex(&secret.prove(&[b"twinshard register"])))
    }

    /// Where the register is, if it is in a database of the deployment.
    ///
    /// # Errors
    /// Never: what is put together is a URL.
    #[cfg(feature = "mysql")]
    pub fn register_settings(&self) -> Result<Option<crate::mysql::MysqlSettings>, String> {
        let url = format!("mysql://{DATABASE_USER}@{REGISTER}:3306/");
        self.register_password()
            .map(|password| crate::mysql::MysqlSettings::new(&url, &password, crate::register::mysql::DATABASE))
            .transpose()
    }

    async fn bring_up_one(
        &self,
        alias: &str,
        label: (String, String),
        data: String,
        credentials: String,
        password: String,
    ) -> Result<(), DockerError> {
        let Some((image, _)) = &self.settings.database else { return Ok(()) };
        if self.deployment.container_with(&label.0, &label.1).await?.is_some_and(|container| Deployment::is_running(&container)) {
            return Ok(());
        }
        let labels = [(label.0.as_str(), label.1.clone())];
        self.deployment.ensure_volume(&data, &labels).await?;
        self.deployment.ensure_volume(&credentials, &labels).await?;
        let users = format!(
            "CREATE USER IF NOT EXISTS '{DATABASE_USER}'@'%' IDENTIFIED BY '{password}';\nGRANT ALL PRIVILEGES ON *.* TO '{DATABASE_USER}'@'%';\n"
        );
        let wanted = Wanted {
            alias: alias.to_owned(),
            image: image.clone(),
            command: vec![],
            environment: vec![],
            labels: vec![label],
            volumes: vec![(data, "/data".to_owned(), true), (credentials, "/credentials".to_owned(), true)],
            socket: None,
            published: None,
            credentials: vec![
                // For whoever looks by hand: `docker exec -it Server0-db mysql`.
                ("client.cnf".to_owned(), format!("[client]\nuser={DATABASE_USER}\npassword={password}\n")),
                ("init.sql".to_owned(), users),
                ("password".to_owned(), password),
            ],
            restarts: true,
            memory_mib: self.settings.memory_mib,
            cpu_millis: self.settings.cpu_millis,
        };
        self.deployment.bring_up(&wanted).await
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
