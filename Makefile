# SPDX-License-Identifier: Apache-2.0
# The two commands of the README, and their undoing. Everything else is tox's.
PYTHON ?= /usr/bin/python3
TOX = .tox/runner/bin/tox

.PHONY: demo demo-down test

demo:
	tools/install demo
	$(PYTHON) -m tools.demo up $(if $(KEYSTONE),--keystone)

demo-down:
	$(PYTHON) -m tools.demo down

test: $(TOX)
	tools/install test
	$(TOX)

$(TOX):
	tools/install demo
	$(PYTHON) -m venv .tox/runner
	.tox/runner/bin/pip install --quiet --disable-pip-version-check 'tox>=4.20'
