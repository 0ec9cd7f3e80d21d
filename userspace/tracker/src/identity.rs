//! What tells objects of the kernel apart.

/// Tells open files apart, as long as all of them stay open. Deliberately without a way to print it: it is an address in the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileIdentity(u64);

impl std::fmt::Debug for FileIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FileIdentity")
    }
}

impl FileIdentity {
    /// From the address of a struct file.
    pub(crate) fn new(address: u64) -> Self {
        Self(address)
    }
}

/// Major and minor number of a `dev_t` inside the kernel (include/linux/kdev_t.h).
pub(crate) fn device(number: u32) -> (u32, u32) {
    (number >> 20, number & 0xf_ffff)
}
