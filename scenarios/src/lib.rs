//! Scenario files and everything about them that does not depend on a world: the workload they ask for, the history of what clients
//! saw, the checkers that judge it, and the report for people (DESIGN 9). Knows no world, no clock, no network.

pub mod checker;
pub mod history;
pub mod report;
pub mod scenario;
pub mod timeline;
pub mod workload;
