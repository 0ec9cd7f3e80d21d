//! Random memory operations of a few processes, and a model of what every page must hold after them.
//!
//! The model lives here, outside of the program that carries them out and of any checkpoint of it, so that stale memory cannot
//! agree with a stale model.

mod compare;
mod driver;
mod generate;
mod op;
mod page;
mod world;

pub use driver::{Driver, Mode};
