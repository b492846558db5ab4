//! Stories of whole balancers: a register that loses answers, a provisioner, servers that do as they are told.

mod admins;
mod life;
mod losses;
mod notes;
mod provisioning;
mod register;
mod relocations;
mod world;
