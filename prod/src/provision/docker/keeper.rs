//! What a deployment has besides its servers, and that it runs: the databases, and the balancers themselves. The engine undoes nothing that
//! was done through it (`docker kill`, `stop`, `pause`, `network disconnect`, `rm`), so every balancer does, for the others as well.
//!
//! What the balancers of a deployment are stands in a label that each of them has. While the deployment is being changed a volume says so
//! ([`Deployment::hold`]); nothing is undone then.

use super::DockerProvisioner;
use crate::docker::{Deployment, DockerError, MEMBERS, ROLE, SERVER, Wanted, name_of};
use bollard::models::{ContainerSummary, ContainerSummaryStateEnum};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::{Instant, sleep};
use twinshard_core::id::ServerId;

/// How often it is looked whether everything runs.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a deployment may take to be changed. Who changes it may have died.
const HOLD_MAX: Duration = Duration::from_secs(300);
/// How long it may take to start a container that was made. Who made it may have died.
const MAKING_MAX: Duration = Duration::from_secs(10);
/// The label with the id of the server whose database it is.
pub const DATABASE_OF: &str = "twinshard.database-of";
/// What the first balancer is called, and the role of all that take requests.
pub const BALANCER: &str = "balancer";
/// What the database of the register is called, and its role.
pub const REGISTER: &str = "register";

fn label<'a>(container: &'a ContainerSummary, label: &str) -> Option<&'a str> {
    container.labels.as_ref()?.get(label).map(String::as_str)
}

/// The balancers as they are to be made: each knows them all.
///
/// # Errors
/// If they cannot be written down.
pub fn members(members: &[Wanted]) -> Result<Vec<Wanted>, serde_json::Error> {
    let all = serde_json::to_string(members)?;
    let with_label = |member: &Wanted| {
        let mut member = member.clone();
        member.labels.push((MEMBERS.to_owned(), all.clone()));
        member
    };
    Ok(members.iter().map(with_label).collect())
}

/// What a member says that all members are.
#[must_use]
pub fn members_of(container: &ContainerSummary) -> Option<Vec<Wanted>> {
    let found: Vec<Wanted> = serde_json::from_str(label(container, MEMBERS)?).ok()?;
    members(&found).ok()
}

/// The hold that was seen last, and since when.
#[derive(Debug, Default)]
struct Hold(Option<(String, Instant)>);

impl Hold {
    /// Whether it keeps from changing anything. One that stands for too long does not: who made it has died.
    fn is_on(&mut self, found: Option<String>, now: Instant) -> bool {
        match (found, &self.0) {
            (None, _) => {
                self.0 = None;
                false
            }
            (Some(found), Some((known, since))) if found == *known => now - *since < HOLD_MAX,
            (Some(found), _) => {
                self.0 = Some((found, now));
                true
            }
        }
    }
}

/// Containers that were made and not started yet, and since when.
#[derive(Debug, Default)]
struct Unfinished(BTreeMap<String, Instant>);

impl Unfinished {
    /// Those that have been so for too long.
    fn late(&mut self, made: &BTreeSet<&str>, now: Instant) -> BTreeSet<String> {
        self.0.retain(|id, _| made.contains(id.as_str()));
        for id in made {
            self.0.entry((*id).to_owned()).or_insert(now);
        }
        self.0.iter().filter(|(_, since)| now - **since >= MAKING_MAX).map(|(id, _)| id.clone()).collect()
    }
}

fn ids<'a>(ailing: &'a [(&ContainerSummary, Ailment)], wanted: Ailment) -> impl Iterator<Item = &'a str> {
    ailing.iter().filter(move |(_, ailment)| *ailment == wanted).filter_map(|(container, _)| container.id.as_deref())
}

impl DockerProvisioner {
    /// Brings back what has ended, is paused, cut off or gone of databases and balancers, for ever.
    pub async fn keep(&self) {
        let mut hold = Hold::default();
        let mut unfinished = Unfinished::default();
        loop {
            sleep(LOOK_EVERY).await;
            if let Err(error) = self.look(&mut hold, &mut unfinished).await {
                tracing::warn!(%error, "databases and balancers cannot be looked after");
            }
        }
    }

    async fn look(&self, hold: &mut Hold, unfinished: &mut Unfinished) -> Result<(), DockerError> {
        let deployment = &self.deployment;
        let containers = deployment.containers().await?;
        let kept = containers.iter().filter(|container| is_kept(container));
        let mut ailing: Vec<_> = kept.filter_map(|container| Some((container, ailment(deployment, container)?))).collect();
        let made: BTreeSet<&str> = ids(&ailing, Ailment::Unfinished).collect();
        let late = unfinished.late(&made, Instant::now());
        ailing.retain(|(container, ailment)| *ailment != Ailment::Unfinished || container.id.as_ref().is_some_and(|id| late.contains(id)));
        let members = containers.iter().find_map(members_of).unwrap_or_default();
        let is_there = |alias: &str| {
            let name = deployment.container_name(alias);
            containers.iter().any(|container| name_of(container) == name)
        };
        let missing: Vec<_> = members.iter().filter(|member| !is_there(&member.alias)).collect();
        let lacks_register = self.settings.has_register && !is_there(REGISTER);
        let bare = if self.settings.database.is_some() { without_database(deployment, &containers) } else { Vec::new() };
        if ailing.is_empty() && missing.is_empty() && bare.is_empty() && !lacks_register {
            return Ok(());
        }
        if hold.is_on(deployment.held().await?, Instant::now()) {
            return Ok(());
        }
        for (container, ailment) in ailing {
            let name = name_of(container);
            let id = container.id.as_deref().unwrap_or_default();
            let done = match ailment {
                Ailment::Ended => deployment.start(id).await,
                Ailment::Paused => deployment.unpause(id).await,
                Ailment::CutOff => deployment.connect_again(container).await,
                // It may lack what is given to it before it starts: the next look finds it missing.
                Ailment::Unfinished => deployment.remove(id).await,
            };
            match done {
                Ok(()) => tracing::warn!(name, ?ailment, "brought back"),
                Err(error) => tracing::warn!(name, ?ailment, %error, "could not be brought back"),
            }
        }
        for member in missing {
            match deployment.bring_up(member).await {
                Ok(()) => tracing::warn!(name = member.alias, "made anew"),
                Err(error) => tracing::warn!(name = member.alias, %error, "could not be made anew"),
            }
        }
        for (server, name) in bare {
            match self.bring_database_up(server, &name).await {
                Ok(()) => tracing::warn!(name = super::database_alias(&name), "made anew"),
                Err(error) => tracing::warn!(name = super::database_alias(&name), %error, "could not be made anew"),
            }
        }
        if lacks_register {
            self.bring_register_up().await?;
            tracing::warn!(name = REGISTER, "made anew");
        }
        Ok(())
    }
}

/// The servers whose database is gone. It is made before its server, and removed after it.
fn without_database(deployment: &Deployment, containers: &[ContainerSummary]) -> Vec<(ServerId, String)> {
    let has_database = |server: &str| containers.iter().any(|container| label(container, DATABASE_OF) == Some(server));
    let servers = containers.iter().filter_map(|container| {
        let id = label(container, SERVER).filter(|id| !has_database(id))?;
        Some((ServerId(id.parse().ok()?), deployment.alias_of(container).to_owned()))
    });
    servers.collect()
}

/// Whether it is brought back: databases and balancers are, what has to do but once is not.
fn is_kept(container: &ContainerSummary) -> bool {
    label(container, DATABASE_OF).is_some()
        || label(container, ROLE).is_some_and(|role| role == REGISTER || role == BALANCER)
        || label(container, MEMBERS).is_some()
}

/// What is wrong with a container that is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ailment {
    Ended,
    Paused,
    CutOff,
    /// It was made and not started, or the engine cannot do anything with it.
    Unfinished,
}

fn ailment(deployment: &Deployment, container: &ContainerSummary) -> Option<Ailment> {
    match container.state {
        Some(ContainerSummaryStateEnum::EXITED) => Some(Ailment::Ended),
        Some(ContainerSummaryStateEnum::PAUSED) => Some(Ailment::Paused),
        Some(ContainerSummaryStateEnum::CREATED | ContainerSummaryStateEnum::DEAD) => Some(Ailment::Unfinished),
        Some(ContainerSummaryStateEnum::RUNNING) if !deployment.is_connected(container) => Some(Ailment::CutOff),
        Some(_) | None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_changes_a_deployment_and_dies_holds_it_for_a_time_only() {
        let (mut hold, begin) = (Hold::default(), Instant::now());
        let found = |number: u32| Some(number.to_string());
        assert!(!hold.is_on(None, begin));
        assert!(hold.is_on(found(1), begin) && hold.is_on(found(1), begin + HOLD_MAX / 2));
        assert!(!hold.is_on(found(1), begin + HOLD_MAX));
        // Another one counts anew, and so does the same after it was gone.
        assert!(hold.is_on(found(2), begin + HOLD_MAX));
        assert!(!hold.is_on(None, begin + HOLD_MAX));
        assert!(hold.is_on(found(2), begin + HOLD_MAX * 3));
    }

    #[test]
    fn what_was_made_and_never_started_is_given_up_after_a_time() {
        let (mut unfinished, begin) = (Unfinished::default(), Instant::now());
        let mut late = |made: &[&str], after: Duration| {
            unfinished.late(&made.iter().copied().collect(), begin + after).into_iter().collect::<Vec<_>>()
        };
        assert!(late(&["a"], Duration::ZERO).is_empty() && late(&["a", "b"], MAKING_MAX / 2).is_empty());
        assert_eq!(late(&["a", "b"], MAKING_MAX), ["a"]);
        // One that was started meanwhile counts anew.
        assert!(late(&[], MAKING_MAX).is_empty() && late(&["a"], MAKING_MAX * 2).is_empty());
    }

    #[test]
    fn only_what_is_to_run_is_brought_back() {
        for (name, value, is_brought_back) in [
            (ROLE, "register", true),
            // One of Compose.
            (ROLE, "balancer", true),
            (MEMBERS, "[]", true),
            (DATABASE_OF, "7", true),
            // It opens the logs of servers: never beside them.
            (ROLE, "recovery", false),
            // Its controller does.
            (SERVER, "7", false),
        ] {
            let labels = [(name.to_owned(), value.to_owned())].into();
            let container = ContainerSummary { labels: Some(labels), ..ContainerSummary::default() };
            assert_eq!(is_kept(&container), is_brought_back, "{name} {value}");
        }
    }

    #[test]
    fn every_member_knows_all() {
        let member = |alias: &str| Wanted {
            alias: alias.to_owned(),
            image: "image".to_owned(),
            command: vec!["balancer".to_owned()],
            environment: vec![],
            labels: vec![(ROLE.to_owned(), "balancer".to_owned())],
            volumes: vec![("data".to_owned(), "/data".to_owned(), true)],
            socket: Some(("/socket".to_owned(), 7)),
            published: Some(("127.0.0.1".parse().expect("an address"), 5000)),
            credentials: vec![],
            restarts: true,
            memory_mib: 1,
            cpu_millis: 1,
        };
        let made = members(&[member("balancer"), member("balancer2")]).expect("written");
        for member in &made {
            let summary = ContainerSummary { labels: Some(member.labels.iter().cloned().collect()), ..ContainerSummary::default() };
            assert_eq!(members_of(&summary).as_ref(), Some(&made));
        }
    }
}
