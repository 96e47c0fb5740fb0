# cython: language_level=3
"""Who listens on a TCP port: one netlink question to the kernel (sock_diag(7)).

/proc/net/tcp answers the same by printing every socket of the host; here the kernel filters by state and port.
"""

from libc.errno cimport EBADMSG, EMSGSIZE, EOVERFLOW, errno
from libc.string cimport memset

import os
import socket
import struct

RECEIVE_TIMEOUT = struct.pack("ll", 1, 0)  # a dump is answered within the call; a second means that something is wrong


def listener_inodes(port: int) -> list[int]:
    if not 1 <= port <= 65535:
        raise ValueError(f"port {port} is outside 1..65535")
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        found += _family_inodes(family, port)
    return found


def _family_inodes(family: int, port: int) -> list[int]:
    cdef Answer answer
    cdef uint8_t native_family = family
    cdef uint16_t native_port = port
    cdef int fd
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG) as channel:
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, RECEIVE_TIMEOUT)
        fd = channel.fileno()
        memset(&answer, 0, sizeof(answer))
        with nogil:
            answer.status = ask(fd, native_family, native_port)
            if answer.status == 0:
                receive(fd, native_port, &answer)
    if answer.status < 0:
        raise OSError(-answer.status, f"sock_diag: {os.strerror(-answer.status)}")
    return [answer.inodes[i] for i in range(answer.count)]


cdef int ask(int fd, uint8_t family, uint16_t port) noexcept nogil:
    """Sends the dump request; 0 or a negated errno."""
    cdef uint32_t words[REQUEST_WORDS]
    cdef nlmsghdr *header = <nlmsghdr *> words
    cdef inet_diag_req_v2 *request = <inet_diag_req_v2 *> NLMSG_DATA(header)
    memset(words, 0, sizeof(words))
    header.nlmsg_len = NLMSG_LENGTH(sizeof(inet_diag_req_v2))
    header.nlmsg_type = SOCK_DIAG_BY_FAMILY
    header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP
    request.sdiag_family = family
    request.sdiag_protocol = IPPROTO_TCP_NUMBER
    request.idiag_states = 1 << TCP_LISTEN_STATE
    request.id.idiag_sport = htons(port)
    if send(fd, words, header.nlmsg_len, 0) < 0:
        return -errno
    return 0


cdef void receive(int fd, uint16_t port, Answer *answer) noexcept nogil:
    """Reads datagrams until the dump ends, fails, or has become longer than it can be."""
    cdef uint32_t words[DATAGRAM_WORDS]
    cdef Py_ssize_t length
    cdef int _
    for _ in range(MAX_DATAGRAMS):
        # MSG_TRUNC: the true length, so that a cut datagram is an error and not a short list.
        length = recv(fd, words, sizeof(words), MSG_TRUNC)
        if length < 0:
            answer.status = -errno
        elif length > <Py_ssize_t> sizeof(words):
            answer.status = -EMSGSIZE
        else:
            read_datagram(<const uint8_t *> words, <uint32_t> length, port, answer)
        if answer.status != 0:
            return
    answer.status = -EOVERFLOW


cdef void read_datagram(const uint8_t *data, uint32_t length, uint16_t port, Answer *answer) noexcept nogil:
    cdef const nlmsghdr *header
    cdef uint32_t offset = 0
    while answer.status == 0 and offset + sizeof(nlmsghdr) <= length:
        header = <const nlmsghdr *> (data + offset)
        if header.nlmsg_len < sizeof(nlmsghdr) or header.nlmsg_len > length - offset:
            answer.status = -EBADMSG
            return
        read_message(header, port, answer)
        offset += NLMSG_ALIGN(header.nlmsg_len)


cdef int ending(const nlmsghdr *header) noexcept nogil:
    """1 for a dump that ended well, else a negated errno; the first word of both kinds of ending is the error."""
    cdef int32_t error
    if header.nlmsg_len < NLMSG_LENGTH(sizeof(int32_t)):
        return -EBADMSG
    error = (<const int32_t *> NLMSG_DATA(header))[0]
    if error < 0:
        return error
    return 1 if header.nlmsg_type == NLMSG_DONE else -EBADMSG


cdef void read_message(const nlmsghdr *header, uint16_t port, Answer *answer) noexcept nogil:
    cdef const inet_diag_msg *found
    if header.nlmsg_type == NLMSG_DONE or header.nlmsg_type == NLMSG_ERROR:
        answer.status = ending(header)
    elif header.nlmsg_len < NLMSG_LENGTH(sizeof(inet_diag_msg)):
        answer.status = -EBADMSG
    else:
        found = <const inet_diag_msg *> NLMSG_DATA(header)
        # A kernel that ignores the filter would otherwise hand us every listener of the host.
        if found.idiag_state != TCP_LISTEN_STATE or found.id.idiag_sport != htons(port):
            return
        if answer.count == CAPACITY:
            answer.status = -EOVERFLOW
            return
        answer.inodes[answer.count] = found.idiag_inode
        answer.count += 1
