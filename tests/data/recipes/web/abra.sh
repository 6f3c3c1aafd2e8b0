#!/bin/sh
export INDEX_VERSION=v2
export PASSWORDS_VERSION=v1 # raised with every change
