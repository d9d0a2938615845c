/* os.c -- system calls that Python's os module lacks, for the control plane. No state. */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "contract.h"

/* Debian 12's kernel headers have it since 6.1; the field was spare space before. */
#ifndef STATX_DIOALIGN
#define STATX_DIOALIGN 0x2000U
#endif

int32_t aiofs_open_beneath(int32_t root_fd, const char *path, uint64_t flags, uint64_t mode)
{
    struct open_how how = {
        .flags = flags | O_CLOEXEC,
        .mode = mode,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV,
    };
    long fd;

    /* EAGAIN: a rename elsewhere raced with the walk and the kernel could not prove that the path
     * stayed beneath (openat2(2)); a few tries settle it. */
    for (int attempt = 0; attempt < 8; attempt++) {
        fd = syscall(SYS_openat2, root_fd, path, &how, sizeof how);
        if (fd >= 0)
            return (int32_t)fd;
        if (errno != EAGAIN && errno != EINTR)
            break;
    }
    return -errno;
}

int32_t aiofs_rename(int32_t old_dir, const char *old_name, int32_t new_dir, const char *new_name,
                     uint32_t flags)
{
    return renameat2(old_dir, old_name, new_dir, new_name, flags) < 0 ? -errno : 0;
}

int32_t aiofs_statx(int32_t fd, aiofs_statx_result *out)
{
    struct statx st;

    memset(out, 0, sizeof *out);
    if (statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME | STATX_DIOALIGN, &st) < 0)
        return -errno;
    if (st.stx_mask & STATX_BTIME)
        out->birth_ns = (int64_t)st.stx_btime.tv_sec * 1000000000 + st.stx_btime.tv_nsec;
    if (st.stx_mask & STATX_DIOALIGN) {
        out->dio_known = 1;
        out->dio_mem_align = st.stx_dio_mem_align;
        out->dio_offset_align = st.stx_dio_offset_align;
    }
    return 0;
}

static int64_t nanoseconds(const struct statx_timestamp *t)
{
    return (int64_t)t->tv_sec * 1000000000 + t->tv_nsec;
}

int32_t aiofs_stat(int32_t dir_fd, const char *name, aiofs_stat_result *out)
{
    const int flags = AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT;
    struct statx st;

    if (statx(dir_fd, name, flags, STATX_BASIC_STATS | STATX_BTIME, &st) < 0)
        return -errno;
    *out = (aiofs_stat_result){
        .dev = makedev(st.stx_dev_major, st.stx_dev_minor),
        .ino = st.stx_ino,
        .size = (int64_t)st.stx_size,
        .blocks = (int64_t)st.stx_blocks,
        .atime_ns = nanoseconds(&st.stx_atime),
        .mtime_ns = nanoseconds(&st.stx_mtime),
        .ctime_ns = nanoseconds(&st.stx_ctime),
        .birth_ns = st.stx_mask & STATX_BTIME ? nanoseconds(&st.stx_btime) : 0,
        .mode = st.stx_mode,
        .nlink = st.stx_nlink,
        .uid = st.stx_uid,
        .gid = st.stx_gid,
        .blksize = st.stx_blksize,
        .mount_root = st.stx_attributes & STATX_ATTR_MOUNT_ROOT ? 1 : 0,
    };
    return 0;
}

int32_t aiofs_become_io_flusher(void)
{
    return prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) < 0 ? -errno : 0;
}

int32_t aiofs_lock_memory(void)
{
    return mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) < 0 ? -errno : 0;
}

int32_t aiofs_limit_capabilities(uint64_t keep)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];

    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0L, 0L, 0L) < 0)
        return -errno;
    for (unsigned long capability = 0; capability < 64; capability++) {
        /* EINVAL: past the last one of this kernel. EPERM: the bounding set is not ours to change. */
        if (!(keep >> capability & 1) && prctl(PR_CAPBSET_DROP, capability, 0L, 0L, 0L) < 0)
            break;
    }
    if (syscall(SYS_capget, &header, data) < 0)
        return -errno;
    for (int word = 0; word < _LINUX_CAPABILITY_U32S_3; word++) {
        data[word].permitted &= (uint32_t)(keep >> (32 * word));
        data[word].effective = data[word].permitted;
        data[word].inheritable = 0;
    }
    return syscall(SYS_capset, &header, data) < 0 ? -errno : 0;
}

int32_t aiofs_refuse_new_privileges(void)
{
    return prctl(PR_SET_NO_NEW_PRIVS, 1L, 0L, 0L, 0L) < 0 ? -errno : 0;
}
