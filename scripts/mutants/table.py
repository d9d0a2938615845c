"""The mutants: each one change to one file, so that one rule does not hold, and the test that has to notice.

A new one is an entry of MUTANTS. `old` has to be in the file exactly once; the test has to fail by an
assertion, not by a crash. Choose what a tired programmer might write, and the smallest test about the rule.
"""

from __future__ import annotations

from .mutant import PLANE, Mutant
from .waits import WAITS

RULES = "tests/plane/test_data_rules.py"
HOLES = "tests/plane/test_holes.py"
UNALIGNED = "tests/plane/test_unaligned.py"
FORWARDING = "tests/plane/test_forwarding.py"
CONTRACT = "tests/parts/test_driver_contract.py"


MUTANTS = (
    # -- fsync --
    Mutant(
        "fsync-does-nothing",
        "FSYNC is answered after the image's fdatasync",
        f"{PLANE}/serve.c",
        "!(image->flags & AIOFS_IMAGE_NO_FSYNC)",
        "0",
        f"{RULES}::test_fsync_is_answered_only_after_fdatasync",
    ),
    Mutant(
        "fdatasync-not-called",
        "a driver's fsync is an fdatasync of the file",
        f"{PLANE}/drivers/sync.c",
        "result = fdatasync(io->fd);",
        "result = 0;",
        f"{CONTRACT}::test_fsync_succeeds_or_says_why[sync]",
    ),
    Mutant(
        "fsync-overtakes-writes",
        "FSYNC waits for the WRITEs that came before it",
        f"{PLANE}/image.c",
        "return is_change(earlier);",
        "return 0;",
        f"{RULES}::test_fsync_waits_for_the_writes_before_it",
    ),
    Mutant(
        "poison-not-sticky",
        "after a failed fdatasync every later FSYNC of the image fails",
        f"{PLANE}/serve.c",
        """\
    if (result < 0 && !image->sticky_error) {
        image->sticky_error = result;
        image->counters->sticky_error = result;
    }
    if (image->sticky_error)
        serve_fail(plane, r, image->sticky_error);""",
        """\
    if (result < 0)
        serve_fail(plane, r, result);""",
        f"{RULES}::test_a_failed_fsync_is_reported_by_every_later_one",
    ),
    Mutant(
        "poison-ends-with-the-registration",
        "a failed fdatasync is remembered across close and open",
        f"{PLANE}/control.c",
        "image->sticky_error = command->error;\n    image->counters = ",
        "image->sticky_error = 0;\n    image->counters = ",
        f"{RULES}::test_the_sticky_error_outlives_the_registration",
    ),
    Mutant(
        "poison-lost-at-restart",
        "a failed fdatasync outlives the server that was told of it",
        "aiofs/images.py",
        "sticky = -image.counters.memory.sticky_error",
        "sticky = 0",
        "tests/parts/test_restore.py::test_open_images_are_opened_again[True]",
    ),
    # -- whole answers --
    Mutant(
        "short-write-answered",
        "a WRITE is answered when all of it is done",
        f"{PLANE}/serve.c",
        "    if ((size_t)bytes == r->single.iov_len) {\n        answer_write",
        "    if (bytes >= 0) {\n        answer_write",
        f"{RULES}::test_a_short_write_goes_on_until_it_is_whole",
    ),
    Mutant(
        "write-without-room-answered",
        "a WRITE that cannot go on is ENOSPC",
        f"{PLANE}/serve.c",
        "serve_fail(plane, r, -ENOSPC);",
        "answer_write(plane, r);",
        f"{RULES}::test_a_write_that_cannot_go_on_is_enospc",
    ),
    Mutant(
        "short-read-answered",
        "a READ is answered with all up to the end of the image",
        f"{PLANE}/serve.c",
        "    if ((size_t)bytes == r->single.iov_len) {\n        answer_read",
        "    if (bytes >= 0) {\n        answer_read",
        f"{RULES}::test_a_short_read_goes_on_until_it_is_whole",
    ),
    Mutant(
        "interruption-answered",
        "EINTR of a driver is no answer",
        f"{PLANE}/serve.c",
        "result == -EINTR || result == -EAGAIN",
        "result == -EAGAIN",
        f"{RULES}::test_a_driver_that_was_interrupted_is_asked_again[4]",
    ),
    # -- order --
    Mutant(
        "overlap-wait-off",
        "a request waits for an earlier one that it overlaps",
        f"{PLANE}/image.c",
        "return overlap(earlier, later);",
        "return 0;",
        f"{RULES}::test_overlapping_requests_take_effect_in_order",
    ),
    Mutant(
        "waiting-ones-overtaken",
        "a request waits for an earlier one that waits itself",
        f"{PLANE}/image.c",
        "if (conflict(earlier, r))",
        "if (earlier->state != REQUEST_WAITING && conflict(earlier, r))",
        f"{RULES}::test_one_that_waits_holds_back_those_that_overlap_it",
    ),
    Mutant(
        "resize-no-barrier",
        "a resize waits for all before it and holds back all after it",
        f"{PLANE}/image.c",
        "if (earlier->kind == REQUEST_TRUNCATE || later->kind == REQUEST_TRUNCATE)\n        return 1;",
        "if (earlier->kind == REQUEST_TRUNCATE || later->kind == REQUEST_TRUNCATE)\n        return 0;",
        f"{RULES}::test_a_resize_waits_for_all_before_it_and_holds_back_all_after_it",
    ),
    Mutant(
        "unregister-at-once",
        "UNREGISTER is answered when nothing of the image is in flight",
        f"{PLANE}/control.c",
        "    image->unregister_id = command->id;",
        "    control_answer(plane, command->id, 0);\n    image->unregister_id = command->id;",
        f"{FORWARDING}::test_unregister_waits_for_what_is_in_flight",
    ),
    Mutant(
        "stop-refuses-what-waits",
        "after a stop everything that was read is still done",
        f"{PLANE}/serve.c",
        "        serve_ready(plane, waiting);",
        "        if (plane->stop)\n            serve_fail(plane, waiting, -ECANCELED);\n"
        "        else\n            serve_ready(plane, waiting);",
        f"{FORWARDING}::test_stop_finishes_what_is_in_flight",
    ),
    # -- merging --
    Mutant(
        "merge-across-fsync",
        "nothing is merged across an FSYNC",
        f"{PLANE}/image.c",
        "if (r->kind == REQUEST_FSYNC || r->kind == REQUEST_FALLOCATE ||",
        "if (r->kind == REQUEST_FALLOCATE ||",
        f"{RULES}::test_nothing_is_merged_across_an_fsync",
    ),
    Mutant(
        "merge-of-reads-and-writes",
        "only requests of one direction share an io",
        f"{PLANE}/batch.c",
        "slot << 1 | (r->kind == REQUEST_WRITE)",
        "slot << 1",
        f"{RULES}::test_reads_and_writes_are_not_merged_with_each_other",
    ),
    Mutant(
        "merge-of-images",
        "only requests of one image share an io",
        f"{PLANE}/batch.c",
        "r->epoch << 32 | slot << 1",
        "r->epoch << 32",
        f"{RULES}::test_two_images_are_not_merged_with_each_other",
    ),
    Mutant(
        "merged-error-spread",
        "of a merged io that fails only the request that really fails gets the error",
        f"{PLANE}/serve.c",
        "            left = 0;\n            request_leave_shared(r);\n            again(plane, r);",
        "            left = 0;\n            if (result < 0)\n                serve_fail(plane, r, result);\n"
        "            else\n                again(plane, r);",
        f"{RULES}::test_only_the_request_that_fails_gets_the_error",
    ),
    Mutant(
        "merged-read-keeps-buffer",
        "a READ that is done again alone reads into memory that nobody else has",
        f"{PLANE}/request.h",
        "    if (!r->longer)\n        r->payload = r->own;",
        "    (void)r;",
        f"{RULES}::test_a_read_done_again_leaves_the_buffer_that_was_shared",
    ),
    # -- whole blocks --
    Mutant(
        "rmw-lock-off",
        "an unaligned WRITE locks the blocks that it rewrites",
        f"{PLANE}/serve.c",
        "            request_lock_pages(r);",
        "            (void)r;",
        f"{UNALIGNED}::test_neighbours_in_one_block_do_not_lose_each_other",
    ),
    Mutant(
        "short-edge-zeroed",
        "half a block of an edge is read again while the image goes on behind it",
        f"{PLANE}/serve.c",
        "if (r->io.offset + bytes < size) {\n            again_unless_hopeless",
        "if (0) {\n            again_unless_hopeless",
        f"{UNALIGNED}::test_an_edge_that_came_in_part_is_read_again",
    ),
    Mutant(
        "tail-padded",
        "a WRITE at the end leaves the size exact",
        f"{PLANE}/batch.c",
        "if (range_end(r) > size) {",
        "if (0) {",
        f"{UNALIGNED}::test_a_write_at_the_tail_keeps_the_size_exact",
    ),
    # -- holes --
    Mutant(
        "enosys-answered",
        "one image's ENOSYS does not end FALLOCATE for all",
        f"{PLANE}/space.c",
        "if (error == -ENOSYS)",
        "if (0)",
        f"{HOLES}::test_enosys_is_never_answered[fallocate]",
    ),
    Mutant(
        "hole-not-durable",
        "under O_DSYNC a change of blocks is followed by an fdatasync",
        f"{PLANE}/serve.c",
        "r->kind == REQUEST_FALLOCATE && r->image->flags & AIOFS_IMAGE_DSYNC",
        "0",
        f"{HOLES}::test_under_dsync_a_fallocate_is_followed_by_an_fdatasync",
    ),
    # -- the kernel's side --
    Mutant(
        "resend-bit-dropped",
        "the answer to a message that was sent again keeps bit 63 of its unique",
        f"{PLANE}/protocol.c",
        "out->unique = in.unique;",
        "out->unique = in.unique & ~(1ull << 63);",
        f"{FORWARDING}::test_a_resent_message_keeps_bit_63_of_its_unique",
    ),
    Mutant(
        "write-longer-than-its-data",
        "a WRITE holds the data that it counts",
        f"{PLANE}/protocol.c",
        "|| body_size - sizeof in != in.size)",
        "|| 0)",
        "tests/pure/test_protocol.py::test_a_write_is_accepted_exactly_when_it_holds_what_it_says",
    ),
    Mutant(
        "notifications-pass",
        "no notification passes up that would block the loop's own thread",
        f"{PLANE}/protocol.c",
        "    return out.off < 0;",
        "    return 1;",
        f"{FORWARDING}::test_replies_that_could_harm_do_not_pass[notify with pages]",
    ),
    Mutant(
        "writeback-cache-on",
        "dirty data never lives in the kernel's FUSE cache",
        f"{PLANE}/protocol.c",
        "((uint32_t)(FUSE_WRITEBACK_CACHE | FUSE_AUTO_INVAL_DATA))",
        "((uint32_t)FUSE_AUTO_INVAL_DATA)",
        f"{FORWARDING}::test_init_is_amended_and_kept",
    ),
    # -- whose bytes --
    Mutant(
        "second-writer-let-in",
        "one writer: a second one is refused",
        "aiofs/locks.py",
        "_set(fd, fcntl.F_WRLCK, 0, 0)",
        "_set(fd, fcntl.F_RDLCK, 0, 0)",
        "tests/parts/test_locks.py::test_a_second_writer_is_refused",
    ),
    Mutant(
        "no-lock-at-open",
        "an image is locked while it is open",
        "aiofs/backing.py",
        "                return take(fd)\n",
        "                return None\n",
        "tests/parts/test_images.py::test_an_image_locked_elsewhere_is_busy_and_the_holder_is_named",
    ),
    Mutant(
        "symbolic-links-followed",
        "names are resolved without symbolic links",
        f"{PLANE}/os.c",
        "RESOLVE_NO_SYMLINKS | ",
        "",
        "tests/parts/test_beneath.py::test_no_symbolic_link_is_followed",
    ),
    Mutant(
        "foreign-file-opened",
        "what is opened by its name is the file that was looked up",
        "aiofs/nodes.py",
        "same_file = node.ino == st.ino and node.generation == generation_of(st)",
        "same_file = True",
        "tests/parts/test_nodes.py::test_a_renamed_image_is_not_opened_under_the_name_another_file_took",
    ),
    # -- one server after another --
    Mutant(
        "fence-off",
        "a server waits for the last I/O of the one before it",
        "aiofs/backing.py",
        "            except locks.LockConflict:\n                pass\n",
        "            except locks.LockConflict:\n                return\n",
        "tests/parts/test_restore.py::test_the_locks_of_the_dead_are_waited_for",
    ),
    Mutant(
        "served-too-early",
        "a server reads nothing from the kernel before it has the images back",
        f"{PLANE}/drain.c",
        "    if (plane->held)\n        return 0;\n",
        "",
        "tests/plane/test_takeover.py::test_nothing_is_read_before_it_is_to_serve",
    ),
    Mutant(
        "resend-not-told",
        "the control plane learns that a message was sent before",
        f"{PLANE}/forward.c",
        "    if (message->unique & WIRE_RESENT)\n        protocol_mark_resent(r->head);\n",
        "",
        "tests/plane/test_takeover.py::test_the_control_plane_learns_that_a_message_was_sent_before",
    ),
    Mutant(
        "release-of-an-earlier-open-counts",
        "a RELEASE that comes again closes no later open of its image",
        "aiofs/images.py",
        "        ino = self._by_handle.get(handle)\n",
        "        handle = self._last_handle\n        ino = self._by_handle.get(handle)\n",
        "tests/parts/test_restore.py::test_a_release_that_comes_again_closes_no_later_open",
    ),
    Mutant(
        "older-change-answers",
        "a change of names that comes again finds its own note, not an older one that was the same",
        "aiofs/changes.py",
        "return all(self._newest.get(name) == key for name in names)",
        "return key in self._before",
        "tests/parts/test_restore.py::test_a_name_is_removed_as_often_as_it_was_made",
    ),
    Mutant(
        "rename-not-caught-up",
        "an image whose server was killed while it was renamed is opened again",
        "aiofs/images.py",
        "                self.nodes.catch_up(old, new, ino)\n",
        "                pass\n",
        "tests/parts/test_restore.py::test_an_image_is_found_that_was_being_renamed[new]",
    ),
    Mutant(
        "handle-lost-with-its-server",
        "what stays open keeps the handle that the kernel knows",
        "aiofs/images.py",
        "        image.handle = handle\n",
        "",
        "tests/parts/test_restore.py::test_a_handle_outlives_its_server",
    ),
    Mutant(
        "release-of-any-handle-counted",
        "of the opens that outlive a server, a RELEASE takes back only one of its own handle",
        f"{PLANE}/forward.c",
        "image->handle == asked->handle && ",
        "",
        "tests/plane/test_takeover.py::test_a_release_of_an_earlier_registration_is_not_counted",
    ),
    # -- the end --
    Mutant(
        "images-left-in-a-ring",
        "when a server has closed an image, its file system can be unmounted at once",
        f"{PLANE}/dataplane.c",
        "    control_end(plane);\n",
        "",
        "tests/plane/test_end.py::test_nothing_holds_an_image_that_has_been_closed[-io_uring]",
    ),
    # -- answers --
    Mutant(
        "answer-from-the-stack",
        "what a gathered answer points to stays as it is until it is written",
        f"{PLANE}/replies.c",
        "if (size > sizeof reply->body) {",
        "if (size > 0) {",
        "tests/plane/test_replies.py::test_each_answer_goes_to_its_own_request[together]",
    ),
    *WAITS,
    # -- two drivers --
    Mutant(
        "wide-writes",
        "only reads go to the driver for wide reads",
        f"{PLANE}/batch.c",
        "return io->op == IO_READ && (",
        "return (io->op == IO_READ || io->op == IO_WRITE) && (",
        "tests/plane/test_data_rules.py::test_wide_reads_go_to_a_driver_of_their_own",
    ),
    Mutant(
        "merged-reads-are-narrow",
        "reads that were merged go to the driver for wide reads",
        f"{PLANE}/batch.c",
        "wide = image->wide_queue != image->queue && is_wide(",
        "wide = image->wide_queue != image->queue && !request_of(io)->merged && is_wide(",
        "tests/plane/test_data_rules.py::test_reads_that_are_merged_are_wide",
    ),
)
