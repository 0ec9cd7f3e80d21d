//! Memory of another task.

use std::ffi::c_void;
use std::io;

use super::check;

/// Reads memory of another task (process_vm_readv(2)).
///
/// # Errors
/// EFAULT when not all of it is readable.
pub fn read_memory(tid: i32, address: u64, out: &mut [u8]) -> io::Result<()> {
    read_pieces(tid, &mut [(address, out)])
}

/// As [`read_memory`], several pieces at once.
///
/// # Errors
/// EFAULT when not all of them are readable.
pub fn read_pieces(tid: i32, pieces: &mut [(u64, &mut [u8])]) -> io::Result<()> {
    let parts = pieces.iter_mut();
    let parts: Vec<_> = parts
        .map(|(address, piece)| (*address, piece.as_mut_ptr().cast(), piece.len()))
        .collect();
    // SAFETY: the parts describe live slices that nobody else has.
    unsafe { transfer(tid, &parts, libc::process_vm_readv) }
}

/// Writes pieces of memory of another task (process_vm_writev(2)).
///
/// # Errors
/// EFAULT when not all of it is writable.
pub fn write_memory(tid: i32, pieces: &[(u64, &[u8])]) -> io::Result<()> {
    let parts = pieces.iter();
    let parts: Vec<_> = parts
        .map(|(address, piece)| (*address, piece.as_ptr() as *mut c_void, piece.len()))
        .collect();
    // SAFETY: the parts describe live slices, which this call only reads.
    unsafe { transfer(tid, &parts, libc::process_vm_writev) }
}

/// An address there, a place here, and how many bytes.
type Part = (u64, *mut c_void, usize);
/// process_vm_readv(2) or its twin.
type Call = unsafe extern "C" fn(
    libc::pid_t,
    *const libc::iovec,
    libc::c_ulong,
    *const libc::iovec,
    libc::c_ulong,
    libc::c_ulong,
) -> libc::ssize_t;

/// # Safety
/// The places here may be used as `call` does.
unsafe fn transfer(tid: i32, parts: &[Part], call: Call) -> io::Result<()> {
    // IOV_MAX is 1024.
    for parts in parts.chunks(512) {
        let vector = |base: &dyn Fn(&Part) -> *mut c_void| -> Vec<libc::iovec> {
            let part = |part: &Part| libc::iovec {
                iov_base: base(part),
                iov_len: part.2,
            };
            parts.iter().map(part).collect()
        };
        let (local, remote) = (
            vector(&|part| part.1),
            vector(&|part| part.0 as *mut c_void),
        );
        let total: usize = parts.iter().map(|part| part.2).sum();
        let count = parts.len() as libc::c_ulong;
        // SAFETY: the caller vouches for the places here; those there are checked by the kernel.
        let n =
            check(unsafe { call(tid, local.as_ptr(), count, remote.as_ptr(), count, 0) } as i64)?;
        if n as usize != total {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
    }
    Ok(())
}
