//! What real faults are done to: processes of this machine, or containers of a deployment that was made for it.

#[cfg(feature = "docker")]
use super::super::deploy::{ROWS, StoreArg};
use super::super::{Failure, up::LocalCluster};
use crate::provision::process::Signal;
use twinshard_core::id::ServerId;

#[cfg(feature = "docker")]
use crate::{
    docker::{CHAOS, Deployment, DockerError, ROLE, SERVER},
    provision::docker::{BALANCER, DATABASE_OF, REGISTER},
};
#[cfg(feature = "docker")]
use bollard::models::ContainerSummary;

/// How often it is tried to remove what a server has.
#[cfg(feature = "docker")]
const LOSE_TRIES: u32 = 20;

/// A node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Node {
    /// By its place among the balancers.
    Balancer(usize),
    Server(ServerId),
    /// That of a server's rows.
    Database(ServerId),
    /// Where it is in a database.
    Register,
}

/// What can be done to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blow {
    Kill,
    /// What was killed and has nobody else who starts it is started. The engine starts nothing that it was told to kill.
    Revive,
    Pause,
    Resume,
    /// From all others.
    CutOff,
    Rejoin,
    /// A server dies, and all that it had stored is removed.
    LoseDisk,
}

/// Who can be struck, and how.
pub(super) trait Strikes {
    /// Whether nodes can be cut off.
    fn has_networks(&self) -> bool;

    /// Whether the rows of servers are in databases.
    fn has_databases(&self) -> bool;

    /// Whether the register is in a database.
    fn has_register(&self) -> bool;

    /// Does it. Whether it hit: who does not run is neither killed nor paused.
    ///
    /// # Errors
    /// If it cannot be done, or it is not known whether it was.
    async fn deal(&self, blow: Blow, node: Node) -> Result<bool, String>;
}

/// A live cluster that faults are done to.
pub(super) enum Ground {
    /// Processes, which are ours.
    Processes(Box<LocalCluster>),
    #[cfg(feature = "docker")]
    Containers(Containers),
}

/// A deployment.
#[cfg(feature = "docker")]
pub(super) struct Containers {
    deployment: Deployment,
    /// The names of the balancers' containers, and where they serve clients.
    balancers: Vec<(String, String)>,
    has_databases: bool,
    has_register: bool,
}

impl Ground {
    /// A deployment that may be struck.
    ///
    /// # Errors
    /// If there is none of that name, or it was not made for it.
    #[cfg(feature = "docker")]
    pub(super) async fn deployed(name: &str) -> Result<Self, Failure> {
        let deployment = Deployment::connect(name).await?;
        let mut balancers = Vec::new();
        for container in deployment.balancers().await? {
            if !container.labels.as_ref().is_some_and(|labels| labels.contains_key(CHAOS)) {
                return Err(Failure::usage(format!(
                    "the deployment {name} was not made to be broken: `make all NAME={name} CHAOS=1` allows it, for one without data that matters"
                )));
            }
            let ports = container.ports.iter().flatten();
            let published = ports.filter_map(|port| Some((port.ip.clone()?, port.public_port?))).find(|(ip, _)| !ip.contains(':'));
            if let Some((ip, port)) = published {
                let ip = if ip == "0.0.0.0" { "127.0.0.1".to_owned() } else { ip };
                balancers.push((container_name(&container), format!("{ip}:{port}")));
            }
        }
        if balancers.is_empty() {
            return Err(Failure::usage(format!("there is no deployment {name} whose balancers run: `make all NAME={name} CHAOS=1`")));
        }
        balancers.sort();
        let has_register = deployment.container_with(ROLE, REGISTER).await?.is_some();
        let rows = deployment.volume_label(&deployment.volume_name(BALANCER), ROWS).await?;
        let has_databases = rows.as_deref() == Some(StoreArg::Mysql.name());
        Ok(Self::Containers(Containers { deployment, balancers, has_databases, has_register }))
    }

    /// In reports.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Processes(_) => "live processes",
            #[cfg(feature = "docker")]
            Self::Containers(_) => "live containers",
        }
    }

    /// As a flag of the command.
    pub(super) fn flag(&self) -> String {
        match self {
            Self::Processes(_) => "--up".to_owned(),
            #[cfg(feature = "docker")]
            Self::Containers(containers) => format!("--deployment {}", containers.deployment.name()),
        }
    }

    /// Where balancers serve clients.
    pub(super) fn balancers(&self) -> Vec<String> {
        match self {
            Self::Processes(cluster) => cluster.balancers().to_vec(),
            #[cfg(feature = "docker")]
            Self::Containers(containers) => containers.balancers.iter().map(|(_, address)| address.clone()).collect(),
        }
    }

    /// Ends what is ours.
    pub(super) async fn end(self) {
        match self {
            Self::Processes(cluster) => cluster.stop().await,
            #[cfg(feature = "docker")]
            Self::Containers(_) => {}
        }
    }
}

impl Strikes for Ground {
    fn has_networks(&self) -> bool {
        !matches!(self, Self::Processes(_))
    }

    fn has_databases(&self) -> bool {
        match self {
            Self::Processes(_) => false,
            #[cfg(feature = "docker")]
            Self::Containers(containers) => containers.has_databases,
        }
    }

    fn has_register(&self) -> bool {
        match self {
            Self::Processes(_) => false,
            #[cfg(feature = "docker")]
            Self::Containers(containers) => containers.has_register,
        }
    }

    async fn deal(&self, blow: Blow, node: Node) -> Result<bool, String> {
        match self {
            Self::Processes(cluster) => deal_to_process(cluster, blow, node).await,
            #[cfg(feature = "docker")]
            Self::Containers(containers) => containers.deal(blow, node).await.map_err(|error| error.to_string()),
        }
    }
}

async fn deal_to_process(cluster: &LocalCluster, blow: Blow, node: Node) -> Result<bool, String> {
    let signal = match blow {
        Blow::Kill => Signal::Kill,
        Blow::Pause => Signal::Stop,
        Blow::Resume => Signal::Continue,
        // They have a supervisor that does.
        Blow::Revive => return Ok(false),
        Blow::LoseDisk => {
            let Node::Server(server) = node else { return Err(format!("{node:?} has no disk to lose")) };
            return cluster.provisioner.lose_disk(server).await.map(|()| true);
        }
        Blow::CutOff | Blow::Rejoin => return Err(format!("{node:?} is a process, which cannot be cut off")),
    };
    match node {
        Node::Server(id) => Ok(cluster.provisioner.signal(id, signal).await.is_some()),
        Node::Balancer(place) => Ok(cluster.signal_balancer(place, signal).await),
        Node::Database(_) | Node::Register => Err(format!("{node:?} is in a file")),
    }
}

#[cfg(feature = "docker")]
fn container_name(container: &ContainerSummary) -> String {
    container.names.iter().flatten().next().map(|name| name.trim_start_matches('/').to_owned()).unwrap_or_default()
}

#[cfg(feature = "docker")]
impl Containers {
    async fn of(&self, node: Node) -> Result<Option<ContainerSummary>, DockerError> {
        match node {
            Node::Server(id) => self.deployment.container_with(SERVER, &id.0.to_string()).await,
            Node::Database(id) => self.deployment.container_with(DATABASE_OF, &id.0.to_string()).await,
            Node::Register => self.deployment.container_with(ROLE, REGISTER).await,
            Node::Balancer(place) => match self.balancers.get(place) {
                Some((name, _)) => self.deployment.container_named(name).await,
                None => Ok(None),
            },
        }
    }

    async fn deal(&self, blow: Blow, node: Node) -> Result<bool, DockerError> {
        if let (Blow::LoseDisk, Node::Server(server)) = (blow, node) {
            return self.lose_disk(server).await;
        }
        let Some(container) = self.of(node).await? else { return Ok(false) };
        let id = container.id.as_deref().unwrap_or_default();
        let (is_running, is_paused) = (Deployment::is_running(&container), Deployment::is_paused(&container));
        let is_connected = self.deployment.is_connected(&container);
        match blow {
            Blow::Kill if is_running => unless_quicker(self.deployment.kill(id).await),
            Blow::Pause if is_running => self.deployment.pause(id).await.map(|()| true),
            Blow::Resume if is_paused => self.deployment.unpause(id).await.map(|()| true),
            Blow::CutOff if is_connected => unless_quicker(self.deployment.disconnect(id).await),
            Blow::Rejoin if !is_connected => self.deployment.connect_again(&container).await.map(|()| true),
            // A server is for a balancer to start.
            Blow::Revive if !is_running && !is_paused && !matches!(node, Node::Server(_)) => self.deployment.start(id).await.map(|()| true),
            Blow::Kill | Blow::Revive | Blow::Pause | Blow::Resume | Blow::CutOff | Blow::Rejoin | Blow::LoseDisk => Ok(false),
        }
    }

    /// A balancer may bring the server back while it is taken apart: then again, until nothing is left of what it had. Whether it had
    /// anything.
    async fn lose_disk(&self, server: ServerId) -> Result<bool, DockerError> {
        let mut tries_left = LOSE_TRIES;
        let mut had_data = false;
        loop {
            tries_left -= 1;
            match self.try_to_lose_disk(server, &mut had_data).await {
                Err(DockerError::Refused { .. }) if tries_left > 0 => {}
                done => return done.map(|()| had_data),
            }
        }
    }

    async fn try_to_lose_disk(&self, server: ServerId, had_data: &mut bool) -> Result<(), DockerError> {
        let number = server.0.to_string();
        let mut volumes = Vec::new();
        for label in [SERVER, DATABASE_OF] {
            if let Some(id) = self.deployment.container_with(label, &number).await?.and_then(|container| container.id) {
                self.deployment.remove(&id).await?;
            }
            let found = self.deployment.volumes_with(&format!("{label}={number}")).await?;
            volumes.extend(found.into_iter().map(|volume| (volume, label)));
        }
        for (volume, label) in volumes {
            self.deployment.remove_volume(&volume).await?;
            *had_data |= label == SERVER;
        }
        Ok(())
    }
}

/// Whoever brings things back may have been quicker: then it hit nobody.
#[cfg(feature = "docker")]
fn unless_quicker(done: Result<(), DockerError>) -> Result<bool, DockerError> {
    match done {
        Err(DockerError::Refused { .. }) => Ok(false),
        done => done.map(|()| true),
    }
}
