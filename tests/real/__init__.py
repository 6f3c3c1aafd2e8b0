"""The tests of the main path with a real Gitea or Forgejo in the place of the fake forge: `make test-real`."""
