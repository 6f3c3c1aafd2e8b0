#!/bin/sh

# A swarm config never changes: raise the version together with the file.
export INDEX_VERSION=v1
export HEALTH_VERSION=v1
