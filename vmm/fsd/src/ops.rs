//! The operations, by what they act on.

mod attributes;
mod directory;
mod entry;
mod file;
mod init;
mod node;
mod xattr;
