//! What real faults are done to: processes of this machine, or containers of a deployment that was made for it.

use super::super::{Failure, up::LocalCluster};
use crate::provision::process::Signal;
use twinshard_core::id::ServerId;

#[cfg(feature = "docker")]
use crate::{
    docker::{CHAOS, Deployment, DockerError, ROLE, SERVER},
    provision::docker::{DATABASE_OF, REGISTER},
};
#[cfg(feature = "docker")]
use bollard::models::ContainerSummary;

/// How often it is tried to remove what a server has.
#[cfg(feature = "docker")]
const LOSE_TRIES: u32 = 20;

/// A node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Server(ServerId),
    /// By its place among the balancers.
    Balancer(usize),
}

/// Who can be struck.
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
        Ok(Self::Containers(Containers { deployment, balancers, has_register }))
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

    pub(super) const fn has_networks(&self) -> bool {
        !matches!(self, Self::Processes(_))
    }

    pub(super) const fn has_register(&self) -> bool {
        match self {
            Self::Processes(_) => false,
            #[cfg(feature = "docker")]
            Self::Containers(containers) => containers.has_register,
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

    /// Kills those that run.
    pub(super) async fn kill(&self, nodes: &[Node]) -> Result<(), String> {
        match self {
            Self::Processes(cluster) => signal(cluster, nodes, Signal::Kill).await,
            #[cfg(feature = "docker")]
            Self::Containers(containers) => containers.kill(nodes).await.map_err(|error| error.to_string())?,
        }
        Ok(())
    }

    /// Starts the balancers among those that were killed. Processes have a supervisor that does; the engine starts none that it was told to
    /// kill, and others may all be gone.
    pub(super) async fn revive(&self, nodes: &[Node]) -> Result<(), String> {
        match self {
            Self::Processes(_) => Ok(()),
            #[cfg(feature = "docker")]
            Self::Containers(containers) => containers.revive(nodes).await.map_err(|error| error.to_string()),
        }
    }

    /// Has those stand still that run.
    pub(super) async fn pause(&self, nodes: &[Node]) -> Result<(), String> {
        match self {
            Self::Processes(cluster) => signal(cluster, nodes, Signal::Stop).await,
            #[cfg(feature = "docker")]
            Self::Containers(containers) => containers.pause(nodes).await.map_err(|error| error.to_string())?,
        }
        Ok(())
    }

    /// Lets those go on that stand still and are still there.
    pub(super) async fn resume(&self, nodes: &[Node]) -> Result<(), String> {
        match self {
            Self::Processes(cluster) => signal(cluster, nodes, Signal::Continue).await,
            #[cfg(feature = "docker")]
            Self::Containers(containers) => containers.resume(nodes).await.map_err(|error| error.to_string())?,
        }
        Ok(())
    }

    /// Cuts those off from all others that are not.
    pub(super) async fn cut_off(&self, nodes: &[Node]) -> Result<(), String> {
        match self {
            Self::Processes(_) => Err(format!("{nodes:?} are processes")),
            #[cfg(feature = "docker")]
            Self::Containers(containers) => containers.cut_off(nodes).await.map_err(|error| error.to_string()),
        }
    }

    /// Undoes it.
    pub(super) async fn rejoin(&self, nodes: &[Node]) -> Result<(), String> {
        match self {
            Self::Processes(_) => Err(format!("{nodes:?} are processes")),
            #[cfg(feature = "docker")]
            Self::Containers(containers) => containers.rejoin(nodes).await.map_err(|error| error.to_string()),
        }
    }

    /// Kills a server, and removes all that it had stored.
    pub(super) async fn lose_disk(&self, node: Node) -> Result<(), String> {
        let Node::Server(server) = node else { return Err("a balancer's disk cannot be lost".to_owned()) };
        match self {
            Self::Processes(cluster) => cluster.provisioner.lose_disk(server).await,
            #[cfg(feature = "docker")]
            Self::Containers(containers) => containers.lose_disk(server).await.map_err(|error| error.to_string()),
        }
    }

    /// Kills the database of the register if it runs.
    pub(super) async fn kill_register(&self) -> Result<(), String> {
        match self {
            Self::Processes(_) => Err("the register is in a file".to_owned()),
            #[cfg(feature = "docker")]
            Self::Containers(containers) => containers.kill_register().await.map_err(|error| error.to_string()),
        }
    }
}

async fn signal(cluster: &LocalCluster, nodes: &[Node], signal: Signal) {
    for node in nodes {
        match node {
            // Who does not run takes no notice.
            Node::Server(id) => drop(cluster.provisioner.signal(*id, signal).await),
            Node::Balancer(place) => cluster.signal_balancer(*place, signal).await,
        }
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
            Node::Balancer(place) => match self.balancers.get(place) {
                Some((name, _)) => self.deployment.container_named(name).await,
                None => Ok(None),
            },
        }
    }

    /// The ids of those for which this holds.
    async fn those(&self, nodes: &[Node], is: impl Fn(&ContainerSummary) -> bool) -> Result<Vec<String>, DockerError> {
        let mut ids = Vec::new();
        for node in nodes {
            ids.extend(self.of(*node).await?.filter(&is).and_then(|container| container.id));
        }
        Ok(ids)
    }

    async fn kill(&self, nodes: &[Node]) -> Result<(), DockerError> {
        for id in self.those(nodes, Deployment::is_running).await? {
            unless_gone(self.deployment.kill(&id).await)?;
        }
        Ok(())
    }

    async fn revive(&self, nodes: &[Node]) -> Result<(), DockerError> {
        let balancers: Vec<Node> = nodes.iter().filter(|node| matches!(node, Node::Balancer(_))).copied().collect();
        for id in self.those(&balancers, |container| !Deployment::is_running(container)).await? {
            unless_gone(self.deployment.start(&id).await)?;
        }
        Ok(())
    }

    async fn pause(&self, nodes: &[Node]) -> Result<(), DockerError> {
        for id in self.those(nodes, Deployment::is_running).await? {
            self.deployment.pause(&id).await?;
        }
        Ok(())
    }

    async fn resume(&self, nodes: &[Node]) -> Result<(), DockerError> {
        for id in self.those(nodes, Deployment::is_paused).await? {
            unless_gone(self.deployment.unpause(&id).await)?;
        }
        Ok(())
    }

    async fn cut_off(&self, nodes: &[Node]) -> Result<(), DockerError> {
        for id in self.those(nodes, |container| self.deployment.is_connected(container)).await? {
            unless_gone(self.deployment.disconnect(&id).await)?;
        }
        Ok(())
    }

    async fn rejoin(&self, nodes: &[Node]) -> Result<(), DockerError> {
        for node in nodes {
            if let Some(container) = self.of(*node).await?.filter(|container| !self.deployment.is_connected(container)) {
                unless_gone(self.deployment.connect_again(&container).await)?;
            }
        }
        Ok(())
    }

    /// A balancer may bring the server back while it is taken apart: then again, until nothing is left of what it had.
    async fn lose_disk(&self, server: ServerId) -> Result<(), DockerError> {
        let mut tries_left = LOSE_TRIES;
        loop {
            tries_left -= 1;
            match self.try_to_lose_disk(server).await {
                Err(DockerError::Refused { .. }) if tries_left > 0 => {}
                done => return done,
            }
        }
    }

    async fn try_to_lose_disk(&self, server: ServerId) -> Result<(), DockerError> {
        let number = server.0.to_string();
        let mut volumes = Vec::new();
        for label in [SERVER, DATABASE_OF] {
            if let Some(id) = self.deployment.container_with(label, &number).await?.and_then(|container| container.id) {
                self.deployment.remove(&id).await?;
            }
            volumes.extend(self.deployment.volumes_with(&format!("{label}={number}")).await?);
        }
        for volume in volumes {
            self.deployment.remove_volume(&volume).await?;
        }
        Ok(())
    }

    async fn kill_register(&self) -> Result<(), DockerError> {
        match self.deployment.container_with(ROLE, REGISTER).await? {
            Some(container) if Deployment::is_running(&container) => {
                unless_gone(self.deployment.kill(container.id.as_deref().unwrap_or_default()).await)
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// Whoever brings things back may have been quicker.
#[cfg(feature = "docker")]
fn unless_gone(done: Result<(), DockerError>) -> Result<(), DockerError> {
    match done {
        Err(DockerError::Refused { .. }) => Ok(()),
        done => done,
    }
}
