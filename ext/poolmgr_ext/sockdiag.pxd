# The complete header of sockdiag: the kernel's ABI as far as it is used (netlink(7), sock_diag(7)), and our functions.

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t

cdef extern from "<arpa/inet.h>" nogil:
    uint16_t htons(uint16_t value)

cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_TRUNC
    Py_ssize_t send(int fd, const void *data, size_t length, int flags)
    Py_ssize_t recv(int fd, void *data, size_t length, int flags)

cdef extern from "<linux/netlink.h>" nogil:
    enum:
        NETLINK_SOCK_DIAG
        NLM_F_DUMP
        NLM_F_REQUEST
        NLMSG_DONE
        NLMSG_ERROR
    struct nlmsghdr:
        uint32_t nlmsg_len
        uint16_t nlmsg_type
        uint16_t nlmsg_flags
    uint32_t NLMSG_ALIGN(uint32_t length)
    uint32_t NLMSG_LENGTH(uint32_t payload)
    void *NLMSG_DATA(const nlmsghdr *header)

cdef extern from "<linux/sock_diag.h>" nogil:
    enum:
        SOCK_DIAG_BY_FAMILY

cdef extern from "<linux/inet_diag.h>" nogil:
    struct inet_diag_sockid:
        uint16_t idiag_sport
    struct inet_diag_req_v2:
        uint8_t sdiag_family
        uint8_t sdiag_protocol
        uint32_t idiag_states
        inet_diag_sockid id
    struct inet_diag_msg:
        uint8_t idiag_state
        inet_diag_sockid id
        uint32_t idiag_inode

cdef enum:
    TCP_LISTEN_STATE = 10  # enum in the kernel's net/tcp_states.h
    IPPROTO_TCP_NUMBER = 6
    CAPACITY = 256  # one port has one listener, or one per SO_REUSEPORT worker
    DATAGRAM_WORDS = 8192  # 32 KiB: the most that the kernel's netlink_dump puts into one datagram
    MAX_DATAGRAMS = 64  # CAPACITY answers of about 100 bytes fill one; more means a kernel that does not end
    REQUEST_WORDS = 32

# The listeners found so far. `status`: 0 while more may come, 1 at the end, a negated errno on failure.
cdef struct Answer:
    uint32_t inodes[CAPACITY]
    int count
    int status

cdef int ask(int fd, uint8_t family, uint16_t port) noexcept nogil
cdef void receive(int fd, uint16_t port, Answer *answer) noexcept nogil
cdef void read_datagram(const uint8_t *data, uint32_t length, uint16_t port, Answer *answer) noexcept nogil
cdef int ending(const nlmsghdr *header) noexcept nogil
cdef void read_message(const nlmsghdr *header, uint16_t port, Answer *answer) noexcept nogil
