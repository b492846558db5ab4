//! Tests that need more than one crate, as one binary. Nothing here is used by anything else.

#[cfg(test)]
mod access;
#[cfg(test)]
mod api;
#[cfg(test)]
mod chaos;
#[cfg(test)]
mod cli;
#[cfg(test)]
mod damage;
#[cfg(test)]
mod determinism;
#[cfg(test)]
mod docker;
#[cfg(test)]
mod lock;
#[cfg(test)]
mod ops;
#[cfg(test)]
mod planted;
#[cfg(test)]
mod processes;
#[cfg(test)]
mod scenarios;
#[cfg(test)]
mod tidy;
#[cfg(test)]
mod tls;
#[cfg(test)]
mod turmoil;
