/* Where the machine has what bare guests use, and what they write there: for the assembler as well. */
#define COM1 0x3f8
#define I8042_DATA 0x60
#define I8042_COMMAND 0x64
#define SLEEP_CONTROL 0x600
#define SLEEP_STATUS 0x601
#define RESET 0x602
#define SLEEP_S5 0x34 /* SLP_TYP 5, SLP_EN: ACPI 6.5, 4.8.3.7 */
#define RESET_VALUE 0x01

#define GENERATION 0xdf100 /* of the VM, 16 bytes */
#define SNAPSHOT_MARK 0xdf200

#define IO_APIC 0xfec00000
#define LOCAL_APIC 0xfee00000

/* The windows of virtio devices, one behind the other, and their registers (virtio 1.2, 4.2.2). */
#define FIRST_WINDOW 0xc0001000
#define WINDOW 0x1000
#define DEVICE_ID 0x008
#define DEVICE_FEATURES 0x010
#define DEVICE_FEATURES_SELECT 0x014
#define DRIVER_FEATURES 0x020
#define DRIVER_FEATURES_SELECT 0x024
#define QUEUE_SELECT 0x030
#define QUEUE_SIZE_MAX 0x034
#define QUEUE_SIZE 0x038
#define QUEUE_READY 0x044
#define QUEUE_NOTIFY 0x050
#define INTERRUPT_ACK 0x064
#define STATUS 0x070
#define QUEUE_DESC 0x080
#define QUEUE_DRIVER 0x090
#define QUEUE_DEVICE 0x0a0
#define CONFIGURATION 0x100
