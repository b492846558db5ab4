//! One deployment on a Docker engine: its names, its labels, its containers. Everything it makes carries the label of the deployment, and it
//! touches nothing that does not.

use bollard::{
    Docker,
    errors::Error,
    models::{
        ContainerCreateBody, ContainerSummary, ContainerSummaryStateEnum, EndpointSettings, HostConfig, Mount, MountType,
        NetworkConnectRequest, NetworkCreateRequest, NetworkDisconnectRequest, NetworkingConfig, PortBinding, RestartPolicy,
        RestartPolicyNameEnum, VolumeCreateRequest,
    },
    query_parameters::{
        CreateContainerOptionsBuilder, KillContainerOptions, ListContainersOptionsBuilder, ListImagesOptionsBuilder,
        ListNetworksOptionsBuilder, ListVolumesOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
        RemoveImageOptionsBuilder, UploadToContainerOptionsBuilder,
    },
};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt::Write, net::IpAddr, time::Duration};
use thiserror::Error;

/// The label that says whose something is.
pub const DEPLOYMENT: &str = "twinshard.deployment";
/// The label with the id of a server.
pub const SERVER: &str = "twinshard.server";
/// The label of what is no server's: what it does.
pub const ROLE: &str = "twinshard.role";
/// The label with all balancers of the deployment, on each of them.
pub const MEMBERS: &str = "twinshard.members";
/// The label of a deployment's balancers that says that things may be broken on purpose.
pub const CHAOS: &str = "twinshard.chaos";
/// The label with the id of the cluster.
pub const CLUSTER: &str = "twinshard.cluster";
/// The volume that is there while a deployment is being changed, and its label.
const HOLD: &str = "hold";
/// See [`HOLD`].
const HELD: &str = "twinshard.held";
/// The deployment whose containers have the bare names of their servers.
pub const DEFAULT_NAME: &str = "twinshard";
/// The user that our image runs as: nobody in particular.
const USER: &str = "65532:65532";
/// See [`USER`].
const USER_ID: u64 = 65_532;
/// How long a container may take to end by itself when it is removed kindly.
const STOP_SECONDS: i32 = 5;
/// Processes and threads of one container. A guess: several times what a node has.
const PIDS_MAX: i64 = 512;

/// Why the engine did not do it.
#[derive(Debug, Error)]
pub enum DockerError {
    /// Nobody answers at its socket, or we may not use it.
    #[error("Docker does not answer: {0}. Is it installed, does it run, and may you use its socket (`docker ps` shows it)?")]
    Unreachable(Error),
    /// It refused.
    #[error("Docker refused to {what}: {error}")]
    Refused {
        /// What was asked of it.
        what: String,
        /// Why.
        error: Error,
    },
    /// A name that we need is that of something else.
    #[error("the name {0} is taken by something else on this engine; remove that, or take another name")]
    NameTaken(String),
    /// The name of a deployment has to be that of containers.
    #[error("'{0}' is no name for a deployment: 2 to 40 small letters and digits, with single '_', '.' and '-' between them")]
    BadName(String),
}

/// A deployment.
#[derive(Clone, Debug)]
pub struct Deployment {
    docker: Docker,
    name: String,
}

/// A container to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// What other containers call it.
    pub alias: String,
    /// The image.
    pub image: String,
    /// The words after the program's name.
    pub command: Vec<String>,
    /// Variables of its environment.
    #[serde(default)]
    pub environment: Vec<(String, String)>,
    /// Labels besides the deployment's. The first says what it is: only one that has it, too, is ever replaced by it.
    pub labels: Vec<(String, String)>,
    /// Volumes: name, where, and whether it may write.
    pub volumes: Vec<(String, String, bool)>,
    /// Files of the host that it sees, with the group that may use them: the engine's socket.
    pub socket: Option<(String, u32)>,
    /// Where its port 5000 is published on the host.
    pub published: Option<(IpAddr, u16)>,
    /// Files that are put below /credentials before it starts, for its user only: name and content.
    #[serde(skip)]
    pub credentials: Vec<(String, String)>,
    /// Started again by the engine when it ends by itself.
    pub restarts: bool,
    /// The most memory, in MiB.
    pub memory_mib: u32,
    /// The most processor time, in thousandths of a core.
    pub cpu_millis: u32,
}

impl Wanted {
    /// The id of the container that stands under its name, if that is of the same kind.
    fn replaces(&self, found: ContainerSummary) -> Result<String, DockerError> {
        let is_of_kind =
            self.labels.first().is_some_and(|(label, _)| found.labels.as_ref().is_some_and(|labels| labels.contains_key(label)));
        let name = name_of(&found).to_owned();
        found.id.filter(|_| is_of_kind).ok_or(DockerError::NameTaken(name))
    }
}

fn refused(what: impl Into<String>) -> impl FnOnce(Error) -> DockerError {
    let what = what.into();
    move |error| match error {
        Error::HyperResponseError { .. } | Error::HyperLegacyError { .. } | Error::IOError { .. } => DockerError::Unreachable(error),
        error => DockerError::Refused { what, error },
    }
}

/// Networks, volumes, images and containers are called by it: small letters, as names of images have no others.
fn is_deployment_name(name: &str) -> bool {
    let parts = || name.split(['_', '.', '-']);
    (2..=40).contains(&name.len())
        && parts().all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()))
}

/// The name of the container that others in that deployment call `alias`.
fn container_name(deployment: &str, alias: &str) -> String {
    // A server may have a name that the engine has for no container.
    let is_bare = deployment == DEFAULT_NAME && alias.len() != 1 && !alias.starts_with(['_', '.', '-']);
    if is_bare { alias.to_owned() } else { format!("{deployment}-{alias}") }
}

/// What others in that deployment call the container of that name.
fn alias_in<'a>(deployment: &str, name: &'a str) -> &'a str {
    let alias = name.strip_prefix(deployment).and_then(|rest| rest.strip_prefix('-'));
    alias.filter(|alias| container_name(deployment, alias) == name).unwrap_or(name)
}

/// What a container is called, as it was listed.
#[must_use]
pub fn name_of(container: &ContainerSummary) -> &str {
    container.names.iter().flatten().next().map_or("", |name| name.trim_start_matches('/'))
}

/// Whether a container has a label with this value, as it was listed.
fn has_label(container: &ContainerSummary, label: &str, value: &str) -> bool {
    container.labels.as_ref().is_some_and(|labels| labels.get(label).is_some_and(|found| found == value))
}

/// The engine's answer was that there is no such thing.
const fn is_missing(error: &Error) -> bool {
    matches!(error, Error::DockerResponseServerError { status_code: 404, .. })
}

/// Small files for our user only, as an archive (POSIX ustar).
fn archive(files: &[(String, String)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o400);
        header.set_uid(USER_ID);
        header.set_gid(USER_ID);
        // Neither a short name nor memory fails.
        let _ = archive.append_data(&mut header, name, content.as_bytes());
    }
    archive.into_inner().unwrap_or_default()
}

impl Deployment {
    /// Connects to the engine at its usual socket, or where `DOCKER_HOST` says.
    ///
    /// # Errors
    /// If the name is none, or the engine does not answer.
    pub async fn connect(name: &str) -> Result<Self, DockerError> {
        if !is_deployment_name(name) {
            return Err(DockerError::BadName(name.to_owned()));
        }
        let docker = Docker::connect_with_unix_defaults().map_err(DockerError::Unreachable)?;
        let docker = docker.negotiate_version().await.map_err(DockerError::Unreachable)?;
        docker.ping().await.map_err(DockerError::Unreachable)?;
        Ok(Self { docker, name: name.to_owned() })
    }

    /// Its name, which is also that of its network.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of the container that others call `alias`.
    #[must_use]
    pub fn container_name(&self, alias: &str) -> String {
        container_name(&self.name, alias)
    }

    /// What others call the container of that name.
    #[must_use]
    pub fn alias_of<'a>(&self, container: &'a ContainerSummary) -> &'a str {
        alias_in(&self.name, name_of(container))
    }

    /// The name of a volume.
    #[must_use]
    pub fn volume_name(&self, what: &str) -> String {
        format!("{}-{what}", self.name)
    }

    /// The image of databases that was built for it.
    #[must_use]
    pub fn database_image(&self) -> String {
        format!("{}/database:latest", self.name)
    }

    /// The image that was built for it.
    #[must_use]
    pub fn image(&self) -> String {
        format!("{}/twinshard:latest", self.name)
    }

    fn label(&self) -> String {
        format!("{DEPLOYMENT}={}", self.name)
    }

    /// Its containers, whether they run or not.
    ///
    /// # Errors
    /// If the engine does not answer.
    pub async fn containers(&self) -> Result<Vec<ContainerSummary>, DockerError> {
        let filters = [("label", vec![self.label()])].into();
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        self.docker.list_containers(Some(options)).await.map_err(refused("list containers"))
    }

    /// Its container with this label.
    ///
    /// # Errors
    /// If the engine does not answer.
    pub async fn container_with(&self, label: &str, value: &str) -> Result<Option<ContainerSummary>, DockerError> {
        Ok(self.containers().await?.into_iter().find(|container| has_label(container, label, value)))
    }

    /// Its container of this name.
    ///
    /// # Errors
    /// If the engine does not answer.
    pub async fn container_named(&self, name: &str) -> Result<Option<ContainerSummary>, DockerError> {
        Ok(self.containers().await?.into_iter().find(|container| name_of(container) == name))
    }

    /// Its balancers, whatever they do.
    ///
    /// # Errors
    /// If the engine does not answer.
    pub async fn balancers(&self) -> Result<Vec<ContainerSummary>, DockerError> {
        let mut containers = self.containers().await?;
        containers.retain(|container| container.labels.as_ref().is_some_and(|labels| labels.contains_key(MEMBERS)));
        Ok(containers)
    }

    /// Sees that its network is there. A second one of the same name would be made without complaint, so it looks first.
    ///
    /// # Errors
    /// If the engine refuses, or a network of that name is not ours.
    pub async fn ensure_network(&self) -> Result<(), DockerError> {
        let networks = self.docker.list_networks(None).await.map_err(refused("list networks"))?;
        if let Some(network) = networks.into_iter().find(|network| network.name.as_deref() == Some(&self.name)) {
            let is_ours = network.labels.is_some_and(|labels| labels.get(DEPLOYMENT) == Some(&self.name));
            return if is_ours { Ok(()) } else { Err(DockerError::NameTaken(self.name.clone())) };
        }
        let labels = [(DEPLOYMENT.to_owned(), self.name.clone())].into();
        let network = NetworkCreateRequest { name: self.name.clone(), labels: Some(labels), ..NetworkCreateRequest::default() };
        self.docker.create_network(network).await.map_err(refused("make the network"))?;
        Ok(())
    }

    /// Sees that a volume is there; one that is new gets the labels.
    ///
    /// # Errors
    /// If the engine refuses, or a volume of that name is not ours.
    pub async fn ensure_volume(&self, name: &str, labels: &[(&str, String)]) -> Result<(), DockerError> {
        let own = (DEPLOYMENT.to_owned(), self.name.clone());
        let labels = labels.iter().map(|(label, value)| ((*label).to_owned(), value.clone())).chain([own]).collect();
        let volume = VolumeCreateRequest { name: Some(name.to_owned()), labels: Some(labels), ..VolumeCreateRequest::default() };
        // One that is there is left as it is.
        let volume = self.docker.create_volume(volume).await.map_err(refused(format!("make the volume {name}")))?;
        if volume.labels.get(DEPLOYMENT) != Some(&self.name) {
            return Err(DockerError::NameTaken(name.to_owned()));
        }
        Ok(())
    }

    /// Makes a container and starts it. An earlier one of the deployment by the same name is closed first; its volumes stay.
    ///
    /// # Errors
    /// If the engine refuses, or the name is taken by somebody else.
    pub async fn run(&self, wanted: &Wanted) -> Result<(), DockerError> {
        let name = self.container_name(&wanted.alias);
        if let Some(found) = self.container_named(&name).await? {
            self.close(&wanted.replaces(found)?).await?;
        }
        self.make(wanted).await
    }

    /// Makes a container and starts it, unless another balancer has, or is about to. One that has ended is removed first; its volumes stay.
    ///
    /// # Errors
    /// If the engine refuses, or the name is taken by somebody else.
    pub async fn bring_up(&self, wanted: &Wanted) -> Result<(), DockerError> {
        let name = self.container_name(&wanted.alias);
        let is_it = |found: &ContainerSummary| wanted.labels.first().is_some_and(|(label, value)| has_label(found, label, value));
        if let Some(found) = self.container_named(&name).await? {
            if is_it(&found) && (Self::is_running(&found) || Self::is_being_made(&found)) {
                return Ok(());
            }
            self.remove(&wanted.replaces(found)?).await?;
        }
        match self.make(wanted).await {
            Err(DockerError::NameTaken(_)) if self.container_named(&name).await?.is_some_and(|found| is_it(&found)) => Ok(()),
            made => made,
        }
    }

    async fn make(&self, wanted: &Wanted) -> Result<(), DockerError> {
        let name = self.container_name(&wanted.alias);
        let options = CreateContainerOptionsBuilder::default().name(&name).build();
        self.docker.create_container(Some(options), self.body(wanted)).await.map_err(|error| match error {
            Error::DockerResponseServerError { status_code: 409, .. } => DockerError::NameTaken(name.clone()),
            error => refused(format!("make the container {name}"))(error),
        })?;
        if !wanted.credentials.is_empty() {
            let body = bollard::body_full(archive(&wanted.credentials).into());
            let options = UploadToContainerOptionsBuilder::default().path("/credentials").build();
            let uploaded = self.docker.upload_to_container(&name, Some(options), body).await;
            uploaded.map_err(refused(format!("give {name} its credentials")))?;
        }
        self.docker.start_container(&name, None).await.map_err(refused(format!("start {name}")))
    }

    fn body(&self, wanted: &Wanted) -> ContainerCreateBody {
        let mount = |typ, source: &str, target: &str, is_written: bool| Mount {
            typ: Some(typ),
            source: Some(source.to_owned()),
            target: Some(target.to_owned()),
            read_only: Some(!is_written),
            ..Mount::default()
        };
        let volumes = wanted.volumes.iter().map(|(volume, target, is_written)| mount(MountType::VOLUME, volume, target, *is_written));
        let socket = wanted.socket.iter().map(|(path, _)| mount(MountType::BIND, path, "/var/run/docker.sock", true));
        let own = (DEPLOYMENT.to_owned(), self.name.clone());
        let labels = wanted.labels.iter().cloned().chain([own]);
        let ports = wanted.published.map(|(ip, port)| {
            let binding = PortBinding { host_ip: Some(ip.to_string()), host_port: Some(port.to_string()) };
            [("5000/tcp".to_owned(), Some(vec![binding]))].into()
        });
        let restart = if wanted.restarts { RestartPolicyNameEnum::UNLESS_STOPPED } else { RestartPolicyNameEnum::NO };
        let endpoint = EndpointSettings { aliases: Some(vec![wanted.alias.clone()]), ..EndpointSettings::default() };
        ContainerCreateBody {
            image: Some(wanted.image.clone()),
            cmd: (!wanted.command.is_empty()).then(|| wanted.command.clone()),
            env: Some(wanted.environment.iter().map(|(name, value)| format!("{name}={value}")).collect()),
            user: Some(USER.to_owned()),
            labels: Some(labels.collect()),
            exposed_ports: wanted.published.map(|_| vec!["5000/tcp".to_owned()]),
            host_config: Some(HostConfig {
                network_mode: Some(self.name.clone()),
                mounts: Some(volumes.chain(socket).collect()),
                group_add: wanted.socket.as_ref().map(|(_, group)| vec![group.to_string()]),
                port_bindings: ports,
                restart_policy: Some(RestartPolicy { name: Some(restart), maximum_retry_count: None }),
                readonly_rootfs: Some(true),
                cap_drop: Some(vec!["ALL".to_owned()]),
                security_opt: Some(vec!["no-new-privileges".to_owned()]),
                memory: Some(i64::from(wanted.memory_mib) << 20),
                // No swap: what is over the limit ends, and is started again.
                memory_swap: Some(i64::from(wanted.memory_mib) << 20),
                nano_cpus: Some(i64::from(wanted.cpu_millis) * 1_000_000),
                pids_limit: Some(PIDS_MAX),
                ..HostConfig::default()
            }),
            networking_config: Some(NetworkingConfig { endpoints_config: Some([(self.name.clone(), endpoint)].into()) }),
            ..ContainerCreateBody::default()
        }
    }

    /// Starts a container again that has ended.
    ///
    /// # Errors
    /// If the engine refuses.
    pub async fn start(&self, id: &str) -> Result<(), DockerError> {
        self.docker.start_container(id, None).await.map_err(refused("start a container"))
    }

    /// Kills what runs in a container, as a rehearsal.
    ///
    /// # Errors
    /// If the engine refuses.
    pub async fn kill(&self, id: &str) -> Result<(), DockerError> {
        self.docker.kill_container(id, None::<KillContainerOptions>).await.map_err(refused("kill a container"))
    }

    /// Has a container stand still, as a rehearsal.
    ///
    /// # Errors
    /// If the engine refuses.
    pub async fn pause(&self, id: &str) -> Result<(), DockerError> {
        self.docker.pause_container(id).await.map_err(refused("pause a container"))
    }

    /// Cuts a container off from the deployment's network, as a rehearsal.
    ///
    /// # Errors
    /// If the engine refuses.
    pub async fn disconnect(&self, id: &str) -> Result<(), DockerError> {
        let request = NetworkDisconnectRequest { container: id.to_owned(), force: Some(true) };
        self.docker.disconnect_network(&self.name, request).await.map_err(refused("disconnect a container"))
    }

    /// Lets a container go on that is paused.
    ///
    /// # Errors
    /// If the engine refuses.
    pub async fn unpause(&self, id: &str) -> Result<(), DockerError> {
        self.docker.unpause_container(id).await.map_err(refused("let a container go on"))
    }

    /// Whether a container is in the deployment's network, as it was listed.
    #[must_use]
    pub fn is_connected(&self, container: &ContainerSummary) -> bool {
        let networks = container.network_settings.as_ref().and_then(|settings| settings.networks.as_ref());
        networks.is_some_and(|networks| networks.contains_key(&self.name))
    }

    /// Brings a container back into the deployment's network, under the alias that its name says.
    ///
    /// # Errors
    /// If the engine refuses.
    pub async fn connect_again(&self, container: &ContainerSummary) -> Result<(), DockerError> {
        let alias = self.alias_of(container).to_owned();
        let endpoint = EndpointSettings { aliases: Some(vec![alias]), ..EndpointSettings::default() };
        let request = NetworkConnectRequest { container: container.id.clone().unwrap_or_default(), endpoint_config: Some(endpoint) };
        self.docker.connect_network(&self.name, request).await.map_err(refused("connect a container"))
    }

    /// Kills and removes a container, whatever state it is in. Its volumes stay, but for those without a name, which an image may ask for.
    ///
    /// # Errors
    /// If the engine refuses.
    pub async fn remove(&self, id: &str) -> Result<(), DockerError> {
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        match self.docker.remove_container(id, Some(options)).await {
            Err(error) if !is_missing(&error) => Err(refused("remove a container")(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Asks a container to end, and removes it.
    ///
    /// # Errors
    /// If the engine refuses.
    pub async fn close(&self, id: &str) -> Result<(), DockerError> {
        let options = bollard::query_parameters::StopContainerOptionsBuilder::default().t(STOP_SECONDS).build();
        // A container that is paused does not end by itself, and is removed all the same.
        let _ = self.docker.stop_container(id, Some(options)).await;
        self.remove(id).await
    }

    /// Whether a container runs and is not paused, as it was listed.
    #[must_use]
    pub fn is_running(container: &ContainerSummary) -> bool {
        container.state == Some(ContainerSummaryStateEnum::RUNNING)
    }

    /// Whether a container was made and not started yet, as it was listed.
    #[must_use]
    pub fn is_being_made(container: &ContainerSummary) -> bool {
        container.state == Some(ContainerSummaryStateEnum::CREATED)
    }

    /// Whether a container is paused, as it was listed.
    #[must_use]
    pub fn is_paused(container: &ContainerSummary) -> bool {
        container.state == Some(ContainerSummaryStateEnum::PAUSED)
    }

    /// Whether a container's health check was passed, as it was listed.
    #[must_use]
    pub fn is_healthy(container: &ContainerSummary) -> bool {
        container.status.as_ref().is_some_and(|status| status.contains("(healthy)"))
    }

    /// The last lines that a container printed, for an error message.
    pub async fn last_words(&self, id: &str) -> String {
        self.words_of(id, "3").await
    }

    async fn words_of(&self, id: &str, tail: &str) -> String {
        let options = LogsOptionsBuilder::default().stdout(true).stderr(true).tail(tail).build();
        let mut words = String::new();
        let mut lines = self.docker.logs(id, Some(options));
        while let Ok(Some(Ok(line))) = tokio::time::timeout(Duration::from_secs(2), lines.next()).await {
            let _ = write!(words, "{line}");
        }
        words.trim().to_owned()
    }

    /// The labels of an image, if it is there.
    ///
    /// # Errors
    /// If the engine does not answer.
    pub async fn image_labels(&self, image: &str) -> Result<Option<BTreeMap<String, String>>, DockerError> {
        match self.docker.inspect_image(image).await {
            Ok(image) => Ok(Some(image.config.and_then(|config| config.labels).into_iter().flatten().collect())),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(refused("look at an image")(error)),
        }
    }

    /// Removes the network, if it is ours.
    ///
    /// # Errors
    /// If the engine refuses.
    pub async fn remove_network(&self) -> Result<usize, DockerError> {
        let filters = [("label", vec![self.label()])].into();
        let options = ListNetworksOptionsBuilder::default().filters(&filters).build();
        let networks = self.docker.list_networks(Some(options)).await.map_err(refused("list networks"))?;
        let ids: Vec<String> = networks.into_iter().filter_map(|network| network.id).collect();
        for id in &ids {
            self.docker.remove_network(id).await.map_err(refused("remove the network"))?;
        }
        Ok(ids.len())
    }

    /// Says that the deployment is being changed: until [`Self::let_go`] its balancers bring nothing back that goes. `number` tells this
    /// change from others.
    ///
    /// # Errors
    /// If the engine refuses.
    pub async fn hold(&self, number: u64) -> Result<(), DockerError> {
        self.let_go().await?;
        self.ensure_volume(&self.volume_name(HOLD), &[(HELD, number.to_string())]).await
    }

    /// Says that it is changed no more.
    ///
    /// # Errors
    /// If the engine refuses.
    pub async fn let_go(&self) -> Result<(), DockerError> {
        let hold = self.volume_name(HOLD);
        match self.volume_label(&hold, DEPLOYMENT).await? {
            None => Ok(()),
            Some(name) if name == self.name => self.remove_volume(&hold).await,
            Some(_) => Err(DockerError::NameTaken(hold)),
        }
    }

    /// The number of the change that is under way.
    ///
    /// # Errors
    /// If the engine does not answer.
    pub async fn held(&self) -> Result<Option<String>, DockerError> {
        self.volume_label(&self.volume_name(HOLD), HELD).await
    }

    /// The names of its volumes, in order.
    ///
    /// # Errors
    /// If the engine does not answer.
    pub async fn volumes(&self) -> Result<Vec<String>, DockerError> {
        self.volumes_with(&self.label()).await
    }

    /// The names of its volumes that have this label.
    ///
    /// # Errors
    /// If the engine does not answer.
    pub async fn volumes_with(&self, label: &str) -> Result<Vec<String>, DockerError> {
        let filters = [("label", vec![self.label(), label.to_owned()])].into();
        let options = ListVolumesOptionsBuilder::default().filters(&filters).build();
        let volumes = self.docker.list_volumes(Some(options)).await.map_err(refused("list volumes"))?;
        let mut names: Vec<String> = volumes.volumes.unwrap_or_default().into_iter().map(|volume| volume.name).collect();
        names.sort();
        Ok(names)
    }

    /// A label of a volume, if both are there.
    ///
    /// # Errors
    /// If the engine does not answer.
    pub async fn volume_label(&self, volume: &str, label: &str) -> Result<Option<String>, DockerError> {
        Ok(self.volume_labels(volume).await?.and_then(|mut labels| labels.remove(label)))
    }

    /// The labels of a volume, if it is there.
    ///
    /// # Errors
    /// If the engine does not answer.
    pub async fn volume_labels(&self, volume: &str) -> Result<Option<BTreeMap<String, String>>, DockerError> {
        match self.docker.inspect_volume(volume).await {
            Ok(volume) => Ok(Some(volume.labels.into_iter().collect())),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(refused("look at a volume")(error)),
        }
    }

    /// Waits until a container has ended, and removes it: what it printed, and its exit code.
    ///
    /// # Errors
    /// If the engine does not answer.
    pub async fn finish(&self, alias: &str) -> Result<(String, i64), DockerError> {
        let name = self.container_name(alias);
        let mut ended = self.docker.wait_container(&name, None::<bollard::query_parameters::WaitContainerOptions>);
        let code = match ended.next().await {
            Some(Ok(response)) => response.status_code,
            Some(Err(Error::DockerContainerWaitError { code, .. })) => code,
            Some(Err(error)) => return Err(refused(format!("wait for {name}"))(error)),
            None => 1,
        };
        let words = self.words_of(&name, "all").await;
        self.remove(&name).await?;
        Ok((words, code))
    }

    /// Removes a volume and what is in it, if it is there.
    ///
    /// # Errors
    /// If the engine refuses: something still uses it.
    pub async fn remove_volume(&self, name: &str) -> Result<(), DockerError> {
        let options: Option<bollard::query_parameters::RemoveVolumeOptions> = None;
        match self.docker.remove_volume(name, options).await {
            Err(error) if !is_missing(&error) => Err(refused(format!("remove the volume {name}"))(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Removes the images that were built for it. How many.
    ///
    /// # Errors
    /// If the engine refuses.
    pub async fn remove_images(&self) -> Result<usize, DockerError> {
        let filters = [("label", vec![self.label()])].into();
        let options = ListImagesOptionsBuilder::default().all(false).filters(&filters).build();
        let images = self.docker.list_images(Some(options)).await.map_err(refused("list images"))?;
        for image in &images {
            let options = RemoveImageOptionsBuilder::default().force(true).build();
            match self.docker.remove_image(&image.id, Some(options), None).await {
                Err(error) if !is_missing(&error) => return Err(refused("remove an image")(error)),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(images.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_deployments_are_names_of_images() {
        for good in ["twinshard", "a1", "b-2.c_3"] {
            assert!(is_deployment_name(good), "{good}");
        }
        for bad in ["", "a", "Twinshard", "a-", "-a", "a..b", "a/b", "a b", "a;b", &"a".repeat(41)] {
            assert!(!is_deployment_name(bad), "{bad}");
        }
    }

    #[test]
    fn containers_are_known_by_the_names_of_their_servers() {
        for (deployment, alias, name) in [
            ("twinshard", "Server0", "Server0"),
            ("twinshard", "twinshard-xy", "twinshard-xy"),
            // The engine has no such name for a container.
            ("twinshard", "A", "twinshard-A"),
            ("twinshard", "_x", "twinshard-_x"),
            ("other", "Server0", "other-Server0"),
            ("other", "other-x", "other-other-x"),
        ] {
            assert_eq!(container_name(deployment, alias), name);
            assert_eq!(alias_in(deployment, name), alias);
        }
    }
}
