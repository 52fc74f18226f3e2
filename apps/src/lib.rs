//! The services that the `hovercraft` command can run, and the command itself.

pub mod backend;
pub mod cli;
pub mod config;
pub mod demo;
pub mod kv;
pub mod node;
pub mod resp;
pub mod switch;
pub mod switch_config;
pub mod synthetic;
