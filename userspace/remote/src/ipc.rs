//! System V objects and POSIX message queues, looked at without changing them (sysvipc(7)).

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// What kinds there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// shmget(2)
    Segment,
    /// semget(2)
    Semaphores,
    /// msgget(2)
    Queue,
}

fn check(result: i32) -> io::Result<i32> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A POSIX message queue (mq_getattr(3)).
#[derive(Debug, Clone, Copy)]
pub struct QueueAttributes {
    /// Messages it holds at most.
    pub capacity: u64,
    /// Bytes of a message, at most.
    pub size: u64,
    /// Messages that wait.
    pub waiting: usize,
}

/// What a POSIX message queue is like.
///
/// # Errors
/// EBADF: not one.
pub fn queue_attributes(queue: &impl AsRawFd) -> io::Result<QueueAttributes> {
    // SAFETY: mq_attr is plain data.
    let mut found: libc::mq_attr = unsafe { zeroed() };
    // SAFETY: the structure is a live one for the kernel to fill.
    check(unsafe { libc::mq_getattr(queue.as_raw_fd(), &raw mut found) })?;
    Ok(QueueAttributes {
        capacity: found.mq_maxmsg as u64,
        size: found.mq_msgsize as u64,
        waiting: found.mq_curmsgs as usize,
    })
}

/// Opens a POSIX message queue to look at it, by its name without the slash.
///
/// # Errors
/// As mq_open(2).
pub fn open_queue(name: &str) -> io::Result<OwnedFd> {
    let name = std::ffi::CString::new(name)?;
    let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: the name ends in a zero.
    let fd = unsafe { libc::syscall(libc::SYS_mq_open, name.as_ptr(), flags, 0, 0) };
    let fd = check(fd as i32)?;
    // SAFETY: a new descriptor that we own.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The values of the `count` semaphores of a set.
///
/// # Errors
/// As semctl(2), GETALL; EINVAL also where the set has another number of semaphores.
pub fn values(id: u32, count: usize) -> io::Result<Vec<u16>> {
    // SAFETY: semid_ds is plain data.
    let mut stat: libc::semid_ds = unsafe { zeroed() };
    // SAFETY: IPC_STAT fills the structure.
    check(unsafe { libc::semctl(id as i32, 0, libc::IPC_STAT, &raw mut stat) })?;
    if stat.sem_nsems != count as u64 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut values = vec![0u16; count];
    // SAFETY: there is room for every semaphore: a set never changes its size, and ids are not used again soon.
    check(unsafe { libc::semctl(id as i32, 0, libc::GETALL, values.as_mut_ptr()) })?;
    Ok(values)
}

/// The process that changed the `nth` semaphore of a set last; 0: none that we can see.
///
/// # Errors
/// As semctl(2), GETPID.
pub fn last_user(id: u32, nth: usize) -> io::Result<u32> {
    // SAFETY: no pointers are passed.
    let pid = check(unsafe { libc::semctl(id as i32, nth as i32, libc::GETPID) })?;
    Ok(pid as u32)
}

/// How many bytes a message queue may hold.
///
/// # Errors
/// As msgctl(2), IPC_STAT.
pub fn capacity(id: u32) -> io::Result<u64> {
    // SAFETY: msqid_ds is plain data.
    let mut stat: libc::msqid_ds = unsafe { zeroed() };
    // SAFETY: IPC_STAT fills the structure.
    check(unsafe { libc::msgctl(id as i32, libc::IPC_STAT, &raw mut stat) })?;
    Ok(stat.msg_qbytes)
}

/// The type and content of the `nth` message of a queue, which stays there; `None` past the last.
///
/// # Errors
/// As msgrcv(2) with MSG_COPY; ENOSYS on a kernel without CONFIG_CHECKPOINT_RESTORE.
pub fn message(id: u32, nth: usize) -> io::Result<Option<(i64, Vec<u8>)>> {
    const MSG_COPY: i32 = 0o40000;
    let mut room = 8 << 10;
    loop {
        let mut buffer = vec![0i64; 1 + room / 8];
        let flags = MSG_COPY | libc::IPC_NOWAIT;
        // SAFETY: a long for the type, followed by `room` bytes.
        let got = unsafe {
            libc::msgrcv(
                id as i32,
                buffer.as_mut_ptr().cast(),
                room,
                nth as i64,
                flags,
            )
        };
        if got >= 0 {
            let bytes = buffer[1..].iter().flat_map(|word| word.to_ne_bytes());
            return Ok(Some((buffer[0], bytes.take(got as usize).collect())));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ENOMSG) => return Ok(None),
            // Never more than INT_MAX (ipc/msg.c, do_msgsnd).
            Some(libc::E2BIG) if room < 1 << 31 => room *= 8,
            _ => return Err(error),
        }
    }
}

/// Removes an object (IPC_RMID).
///
/// # Errors
/// As shmctl(2), semctl(2), msgctl(2).
pub fn remove(kind: Kind, id: u32) -> io::Result<()> {
    let (id, none) = (id as i32, std::ptr::null_mut::<libc::c_void>());
    // SAFETY: IPC_RMID takes no argument.
    let result = unsafe {
        match kind {
            Kind::Segment => libc::shmctl(id, libc::IPC_RMID, none.cast()),
            Kind::Semaphores => libc::semctl(id, 0, libc::IPC_RMID),
            Kind::Queue => libc::msgctl(id, libc::IPC_RMID, none.cast()),
        }
    };
    check(result).map(drop)
}

/// A segment attached to read it.
#[derive(Debug)]
pub struct Attached(usize);

impl Attached {
    /// Attaches a segment, read only.
    ///
    /// # Errors
    /// As shmat(2).
    pub fn new(id: u32) -> io::Result<Self> {
        // SAFETY: the kernel chooses where; nothing of ours lies there.
        let at = unsafe { libc::shmat(id as i32, std::ptr::null(), libc::SHM_RDONLY) } as usize;
        if at == usize::MAX {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(at))
    }

    /// Where.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.0 as u64
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // SAFETY: attached by us, and nobody has a reference into it.
        unsafe { libc::shmdt(self.0 as *const libc::c_void) };
    }
}
