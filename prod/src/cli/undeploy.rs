//! `twinshard undeploy`: takes away what `twinshard deploy` and its balancers made. It can be repeated.

use super::{Failure, deploy::while_held};
use crate::docker::{DEFAULT_NAME, Deployment};
use clap::Args;
use std::io::{self, BufRead, IsTerminal, Write};

/// How often it is looked whether a container has come that was being made meanwhile.
const ROUNDS_MAX: usize = 5;

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
        // What is left of a change whose maker died goes in any case.
        deployment.let_go().await?;
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
        let removed = while_held(&deployment, remove_containers(&deployment)).await?;
        println!("containers {removed} removed");
        println!("networks   {} removed", deployment.remove_network().await?);
        if self.keep_data {
            println!("The data is kept. `make all` goes on where it was.");
            return Ok(());
        }
        // Some may have come while it was asked.
        let volumes = deployment.volumes().await?;
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

/// Removes all containers, the balancers first: they start servers, and may just be starting one. How many there were.
pub(super) async fn remove_containers(deployment: &Deployment) -> Result<usize, Failure> {
    let mut count = 0;
    for container in deployment.balancers().await? {
        deployment.close(container.id.as_deref().unwrap_or_default()).await?;
        count += 1;
    }
    for _ in 0..ROUNDS_MAX {
        let containers = deployment.containers().await?;
        if containers.is_empty() {
            return Ok(count);
        }
        for container in &containers {
            deployment.close(container.id.as_deref().unwrap_or_default()).await?;
        }
        count += containers.len();
    }
    Err(Failure::new(format!("something makes containers of {} all the time: stop that first", deployment.name())))
}
