//! Who is alive: control connections, notices of failure, and processes that end.
