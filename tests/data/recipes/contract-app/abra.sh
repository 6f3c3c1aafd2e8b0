#!/bin/sh
export INDEX_VERSION=v1
