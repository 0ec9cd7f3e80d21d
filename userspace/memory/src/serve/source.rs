//! Where pages come from.

/// An image, as the server sees it. Pages are numbered as at the checkpoint: address divided by the page size.
pub trait PageSource: Send + Sync + 'static {
    /// Pages that are read together.
    type Block: Send;

    /// The block that has a page of a space; `None`: the page is zero.
    fn locate(&self, space: u64, page: u64) -> Option<Self::Block>;
    /// Pages that will be wanted first, as far as can be guessed: spaces and pages, in that order.
    fn first(&self) -> Vec<(u64, u64)>;
    /// All blocks of a space, in the order in which they are best read.
    fn blocks(&self, space: u64) -> Box<dyn Iterator<Item = Self::Block> + Send + '_>;
    /// How many pages these have.
    fn pages(&self, space: u64) -> u64;
    /// What tells a block from others.
    fn key(block: &Self::Block) -> u64;
    /// Its pages, ascending.
    fn numbers(block: &Self::Block) -> &[u64];
    /// Reads the bytes of its pages into `out`.
    ///
    /// # Errors
    /// See [`Unreadable`].
    fn read(&self, block: &Self::Block, out: &mut Vec<u8>) -> Result<(), Unreadable>;
    /// Takes note of trouble, for people.
    fn complain(&self, what: &str);
}

/// Why a block cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// For people.
    pub what: String,
    /// Trying again is hardly of use: what is there is not what was written.
    pub damaged: bool,
}
