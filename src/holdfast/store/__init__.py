"""The register's home: the contract, an etcd client, an in-memory twin that passes the same suite."""
