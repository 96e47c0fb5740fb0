def listener_inodes(port: int) -> list[int]:
    """Inodes of the TCP sockets that listen on `port` in this network namespace, IPv4 first, then IPv6.

    A dual-stack socket counts as IPv6. Raises ValueError for a port outside 1..65535, OSError with `errno` when the
    kernel does not answer: ENOENT without inet_diag, EOVERFLOW for more than 256 listeners of a family.
    """
