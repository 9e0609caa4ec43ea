"""What a drill can do to a cluster, each with its proof from outside."""
