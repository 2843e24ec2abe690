/* SPDX-License-Identifier: Apache-2.0
 *
 * The only workload of the test guest: proof, readable from outside, of when it
 * ran and of what it had on its disk.
 *
 *   heartbeat  a line on the serial console every HEARTBEAT_US:
 *              "hb SEQ UPTIME_US RECORDS LONGEST_WRITE_US"
 *   records    4 KiB each, O_DIRECT, one in flight, round and round a raw partition.
 *              Record n+1 is written only when record n is on the disk, so an image of
 *              one point in time holds an unbroken run of them, and nothing newer.
 *              With a MIRROR (a whole disk) each is then written there too, so images of
 *              both disks at one instant differ by one record at the most.
 *   appends    4 KiB and fdatasync in a mounted file: what a frozen file system holds up.
 *
 * usage: pulse CONSOLE HEARTBEAT_US DEVICE RECORD_US FILE APPEND_US [MIRROR]
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { RECORD_BYTES = 4096, FILE_RECORDS = 1024 };

/* The head of a record; tools/stack/records.py reads it. The rest is noise made from `sequence`. */
struct record {
	char magic[8];
	uint64_t sequence;
	uint64_t written_us;
	uint64_t check;
};

static const char MAGIC[8] = "SFRECORD";

static volatile uint64_t records, longest_us;
static const char *device, *file, *mirror;
static long record_us, append_us;

static uint64_t uptime_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000ull + now.tv_nsec / 1000;
}

static void pause_us(long us)
{
	struct timespec span = { us / 1000000, us % 1000000 * 1000 };

	nanosleep(&span, NULL);
}

static void make_record(char *block, uint64_t sequence)
{
	uint64_t *words = (uint64_t *)block, noise = sequence * 0x9E3779B97F4A7C15ull + 1;
	struct record *head = (struct record *)block;

	for (int i = 0; i < RECORD_BYTES / 8; i++) {
		noise ^= noise << 13;
		noise ^= noise >> 7;
		noise ^= noise << 17;
		words[i] = noise;
	}
	memcpy(head->magic, MAGIC, sizeof MAGIC);
	head->sequence = sequence;
	head->written_us = uptime_us();
	head->check = sequence ^ head->written_us ^ 0x5346;
}

/* Where to go on after a reboot: behind the newest record on the device. */
static uint64_t newest_record(int fd, char *block, uint64_t slots)
{
	uint64_t newest = 0;

	for (uint64_t slot = 0; slot < slots; slot++) {
		struct record *head = (struct record *)block;

		if (pread(fd, block, RECORD_BYTES, slot * RECORD_BYTES) != RECORD_BYTES ||
		    memcmp(head->magic, MAGIC, sizeof MAGIC) || head->sequence <= newest)
			break;
		newest = head->sequence;
	}
	return newest;
}

static void *write_records(void *unused)
{
	char *block;
	uint64_t bytes = 0, slots, sequence;
	int fd = open(device, O_RDWR | O_DIRECT);
	int copy = mirror ? open(mirror, O_WRONLY | O_DIRECT) : -1;

	(void)unused;
	if (mirror && copy < 0)
		perror(mirror);
	if (fd < 0 || ioctl(fd, BLKGETSIZE64, &bytes) < 0 ||
	    posix_memalign((void **)&block, RECORD_BYTES, RECORD_BYTES)) {
		perror(device);
		return NULL;
	}
	slots = bytes / RECORD_BYTES;
	sequence = newest_record(fd, block, slots);
	for (;;) {
		uint64_t began = uptime_us();
		off_t place;

		make_record(block, ++sequence);
		place = (sequence - 1) % slots * RECORD_BYTES;
		if (pwrite(fd, block, RECORD_BYTES, place) != RECORD_BYTES ||
		    (copy >= 0 && pwrite(copy, block, RECORD_BYTES, place) != RECORD_BYTES)) {
			perror("record");
			sequence--;
			sleep(1);
			continue;
		}
		if (uptime_us() - began > longest_us)
			longest_us = uptime_us() - began;
		records = sequence;
		pause_us(record_us);
	}
}

static void *append_to_file(void *unused)
{
	static char block[RECORD_BYTES];
	int fd = open(file, O_WRONLY | O_CREAT, 0644);

	(void)unused;
	if (fd < 0) {
		perror(file);
		return NULL;
	}
	for (uint64_t sequence = 1;; sequence++) {
		make_record(block, sequence);
		if (pwrite(fd, block, RECORD_BYTES, (sequence - 1) % FILE_RECORDS * RECORD_BYTES) < 0 ||
		    fdatasync(fd))
			perror("append");
		pause_us(append_us);
	}
}

int main(int argc, char **argv)
{
	int console;
	pthread_t thread;

	if (argc != 7 && argc != 8) {
		fprintf(stderr, "usage: pulse CONSOLE HEARTBEAT_US DEVICE RECORD_US FILE APPEND_US [MIRROR]\n");
		return 2;
	}
	console = open(argv[1], O_WRONLY | O_NOCTTY);
	if (console < 0) {
		perror(argv[1]);
		return 1;
	}
	mirror = argc == 8 ? argv[7] : NULL;
	device = argv[3], record_us = atol(argv[4]), file = argv[5], append_us = atol(argv[6]);
	pthread_create(&thread, NULL, write_records, NULL);
	pthread_create(&thread, NULL, append_to_file, NULL);
	for (uint64_t beat = 0;; beat++) {
		char line[128];
		uint64_t longest = longest_us;
		int length;

		longest_us = 0;
		length = snprintf(line, sizeof line, "hb %llu %llu %llu %llu\n", (unsigned long long)beat,
				  (unsigned long long)uptime_us(), (unsigned long long)records,
				  (unsigned long long)longest);
		if (write(console, line, length) < 0)
			sleep(1);
		pause_us(atol(argv[2]));
	}
}
