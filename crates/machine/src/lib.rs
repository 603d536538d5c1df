//! A machine: assembled from a [`spec::MachineSpec`], run by its one [`run::Owner`].

pub mod pc;
pub mod run;
pub mod spec;
