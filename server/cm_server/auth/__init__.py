"""Who may do what: tokens, keys, enrolment, access and the audit log. No sockets, no SQL."""
