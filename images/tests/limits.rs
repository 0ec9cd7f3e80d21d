//! A limit on the size of files, alone in its process since it holds for all threads.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod common;

use images::{Compression, Error};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

#[test]
fn a_limit_of_file_size_is_an_error_and_no_signal() {
    let (_dir, job) = common::job();
    common::write(&job, Compression::None, &common::sample()).unwrap();
    let (soft, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    // The pages need 32 KiB, the footer and the manifest less than one each.
    for limit in [100, 1000, 4096, 20_000, 34_000] {
        setrlimit(Resource::RLIMIT_FSIZE, limit, hard).unwrap();
        let result = common::write(&job, Compression::None, &common::sample());
        setrlimit(Resource::RLIMIT_FSIZE, soft, hard).unwrap();
        if let Err(error) = &result {
            assert!(
                matches!(error, Error::Io { .. }) && error.to_string().contains("ulimit -f"),
                "{error}"
            );
        }
        assert_eq!(result.is_err(), limit < 34_000, "{limit}");
        assert_eq!(
            job.sequences().unwrap().len(),
            if result.is_err() { 1 } else { 2 }
        );
        assert_eq!(job.verify(None).unwrap(), []);
    }
}
