//! The sans-IO core of Twinshard: the state machines of balancer, shard replica and server (DESIGN 2). An input and the time go in,
//! effects come out. Never I/O, async, threads, clocks, entropy, codecs or unordered maps.

#![cfg_attr(not(test), warn(clippy::wildcard_enum_match_arm, clippy::iter_over_hash_type))]

pub mod command;
pub mod config;
pub mod effect;
pub mod id;
pub mod map;
pub mod message;
pub mod paging;
pub mod planted;
pub mod reason;
pub mod recover;
pub mod request;
pub mod schema;
pub mod storage;
pub mod time;
pub mod value;

pub mod log;
pub mod quorum;
pub mod watermark;

pub mod replica;
pub mod server;

pub mod balancer;
